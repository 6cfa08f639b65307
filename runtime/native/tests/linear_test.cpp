// Linear and GatedLinear as complete operators.
#include "../operators/linear.h"

#include <algorithm>
#include <cmath>

#include "thin.h"

namespace bita::tests {
namespace {

struct Sizes {
  int64_t inputs, outputs, rows;
  int bits;
  bool has_minima, has_bias;
  int64_t rank;  // of LoRA; 0 without
  int64_t first_mask_row;

  std::string text() const {
    return std::to_string(outputs) + "x" + std::to_string(inputs) + ", " + std::to_string(rows) +
           " rows, " + std::to_string(bits) + " bits, rank " + std::to_string(rank);
  }
};

const std::vector<Sizes>& all_sizes() {
  static const std::vector<Sizes> sizes = {
      {1, 1, 1, 4, false, false, 0, 0},      {33, 17, 3, 4, true, true, 0, 0},
      {31, 15, 5, 8, false, true, 1, 4},     {100, 40, 7, 4, false, false, 3, 0},
      {96, 50, 8, 8, true, false, 16, 5},    {64, 16, 9, 4, true, true, 16, 9},
      {129, 33, 10, 4, true, true, 5, 1},    {257, 31, 17, 8, true, true, 17, 11},
      {32, 100, 2, 4, false, true, 2, 1},    {48, 47, 130, 4, true, true, 0, 0},
      {40, 35, 131, 8, false, true, 3, 120}, {33, 1, 128, 4, false, false, 2, 0},
  };
  return sizes;
}

// A node of either operator, and its exact products. up_outputs: N, or 2 * I.
struct Layer {
  Node node;
  std::vector<double> products;  // [rows, outputs], with bias and LoRA
};

// Create weights, bias and LoRA for `outputs` plain outputs; the caller packs the weights.
Layer layer_of(Random& random, const Sizes& sizes, const BlockWeights& weights, int64_t outputs,
               Node node) {
  const std::vector<float> cells = random.reals(sizes.rows * sizes.inputs, 2.0f);
  const Value rows = quantized(cells, sizes.inputs);
  const std::vector<double> inputs = meaning(rows, sizes.inputs);
  const std::vector<float> bias = random.reals(outputs, 0.5f);
  const bool is_gated = node.op == "GatedLinear";
  const Thin lora = random_thin(random, sizes.inputs, outputs, sizes.rank, is_gated);
  Layer layer{std::move(node), {}};
  for (int64_t row = 0; row < sizes.rows; ++row) {
    const double* x = inputs.data() + row * sizes.inputs;
    std::vector<double> thin(static_cast<size_t>(sizes.rank), 0.0);
    if (row >= sizes.first_mask_row)
      for (int64_t i = 0; i < sizes.inputs * sizes.rank; ++i)
        thin[static_cast<size_t>(i % sizes.rank)] +=
            x[i / sizes.rank] * lora.down[static_cast<size_t>(i)];
    for (int64_t n = 0; n < outputs; ++n) {
      double sum = sizes.has_bias ? bias[static_cast<size_t>(n)] : 0.0;
      for (int64_t i = 0; i < sizes.inputs; ++i) sum += x[i] * weights.at(n, i);
      for (int64_t k = 0; k < sizes.rank; ++k)
        sum += thin[static_cast<size_t>(k)] * lora.up[static_cast<size_t>(k * outputs + n)];
      layer.products.push_back(sum);
    }
  }
  layer.node.set("in_features", sizes.inputs);
  layer.node.set("layer", kThinLayer);
  layer.node.feed("quantized", rows);
  if (sizes.has_bias) layer.node.fix("bias", floats({outputs}, bias));
  if (sizes.rank) {
    layer.node.feed("first_mask_row", ints({1}, {sizes.first_mask_row}));
    layer.node.feed("down", lora.down_value());
    layer.node.feed("up", lora.up_value());
  }
  return layer;
}

Layer linear_layer(Random& random, const Sizes& sizes) {
  const BlockWeights weights =
      random_weights(random, sizes.outputs, sizes.inputs, sizes.bits, sizes.has_minima);
  Node node = Node::of<Linear>();
  node.set("out_features", sizes.outputs);
  fix_weights(node, weights);
  return layer_of(random, sizes, weights, sizes.outputs, std::move(node));
}

// Reorder outputs into groups: 32 of the gate, then the same 32 of up; zeros after the last.
BlockWeights grouped(const BlockWeights& plain, int64_t outputs) {
  const int64_t groups = (outputs + kGroup - 1) / kGroup, blocks = num_blocks(plain.inputs);
  BlockWeights made{groups * 2 * kGroup, plain.inputs, plain.bits, {}, {}, {}};
  for (int64_t row = 0; row < made.outputs; ++row) {
    const int64_t output = row / (2 * kGroup) * kGroup + row % kGroup;
    const bool is_up = row % (2 * kGroup) >= kGroup, is_there = output < outputs;
    const int64_t from = is_up ? outputs + output : output;
    for (int64_t i = 0; i < blocks * kBlock; ++i)
      made.values.push_back(is_there ? plain.values[static_cast<size_t>(from * blocks * kBlock + i)]
                                     : 0);
    for (int64_t block = 0; block < blocks; ++block) {
      const auto at = static_cast<size_t>(from * blocks + block);
      made.scales.push_back(is_there ? plain.scales[at] : uint16_t{0});
      if (!plain.minima.empty()) made.minima.push_back(is_there ? plain.minima[at] : uint16_t{0});
    }
  }
  return made;
}

Layer gated_layer(Random& random, const Sizes& sizes, bool is_gelu) {
  const BlockWeights weights =
      random_weights(random, 2 * sizes.outputs, sizes.inputs, sizes.bits, sizes.has_minima);
  Node node = Node::of<GatedLinear>();
  node.set("out_features", sizes.outputs);
  node.set("activation", is_gelu ? "gelu_tanh" : "silu");
  fix_weights(node, grouped(weights, sizes.outputs));
  return layer_of(random, sizes, weights, 2 * sizes.outputs, std::move(node));
}

std::vector<double> gated(const std::vector<double>& products, const Sizes& sizes, bool is_gelu) {
  std::vector<double> all;
  for (int64_t row = 0; row < sizes.rows; ++row)
    for (int64_t i = 0; i < sizes.outputs; ++i) {
      const double* both = products.data() + row * 2 * sizes.outputs;
      const double x = both[i], u = std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x);
      all.push_back(x / (1 + std::exp(is_gelu ? -2 * u : -x)) * both[sizes.outputs + i]);
    }
  return all;
}

// Rows in another order, and single rows, have the same bits as among all rows.
void expect_rows_apart(Random& random, const Layer& layer, const Sizes& sizes,
                       const Value& wanted) {
  const int64_t first = std::min(sizes.first_mask_row, sizes.rows);
  std::vector<int64_t> order = random_order(random, 0, first);
  for (const int64_t row : random_order(random, first, sizes.rows)) order.push_back(row);
  Node node = layer.node;
  node["quantized"] = rows_of(layer.node.inputs[0].value, order);
  expect_same(run(node, {3, 1})[0].bytes, rows_of(wanted, order).bytes,
              sizes.text() + ", reordered");
  for (int i = 0; i < 6; ++i) {
    const int64_t row = random.below(sizes.rows);
    node["quantized"] = rows_of(layer.node.inputs[0].value, {row});
    if (sizes.rank) node["first_mask_row"] = ints({1}, {row >= first ? 0 : 1});
    expect_same(run(node, {2, 1})[0].bytes, rows_of(wanted, {row}).bytes, sizes.text() + ", alone");
  }
}

const Adds linear("Linear gives products, bias and LoRA, with the same bits everywhere", [] {
  Random random(20);
  for (const Sizes& sizes : all_sizes()) {
    const Layer layer = linear_layer(random, sizes);
    const Value found = run_everywhere(layer.node, "Linear " + sizes.text())[0];
    expect(found.dims == std::vector<int64_t>{sizes.rows, sizes.outputs}, "Linear's shape");
    expect_close(found.cells<float>(), layer.products, 1e-5, "Linear " + sizes.text());
    expect_rows_apart(random, layer, sizes, found);
  }
});

const Adds gated_linear("GatedLinear gives activation(gate) * up, with the same bits everywhere",
                        [] {
                          Random random(21);
                          bool is_gelu = false;
                          for (const Sizes& sizes : all_sizes()) {
                            is_gelu = !is_gelu;
                            const Layer layer = gated_layer(random, sizes, is_gelu);
                            const Value found =
                                run_everywhere(layer.node, "GatedLinear " + sizes.text())[0];
                            expect_quantized(found, gated(layer.products, sizes, is_gelu),
                                             sizes.outputs, 1e-4, "GatedLinear " + sizes.text());
                            expect_rows_apart(random, layer, sizes, found);
                          }
                        });

const Adds nothing_to_do("Linear and GatedLinear of no rows, and LoRA of rank 0", [] {
  Random random(22);
  for (int64_t rank : {0, 3}) {
    const Sizes none{40, 20, 0, 4, true, true, rank, 0}, few{40, 20, 2, 4, true, true, 0, 0};
    Layer linear = linear_layer(random, none), gated = gated_layer(random, none, true);
    expect(run(linear.node)[0].dims == std::vector<int64_t>{0, 20}, "no rows of Linear");
    expect(run(gated.node)[0].dims == std::vector<int64_t>{0, 44}, "no rows of GatedLinear");
    Layer thin = linear_layer(random, few);
    const std::vector<Value> wanted = run(thin.node);
    thin.node.feed("first_mask_row", ints({1}, {0}));
    const Thin nothing = random_thin(random, 40, 20, 0, false);
    thin.node.feed("down", nothing.down_value());
    thin.node.feed("up", nothing.up_value());
    expect_same_values(run(thin.node), wanted, "LoRA of rank 0");
  }
});

const Adds far_mask_row("first_mask_row may be after all rows", [] {
  Random random(23);
  Layer layer = linear_layer(random, {40, 20, 3, 4, true, false, 0, 0});
  const std::vector<Value> wanted = run(layer.node);
  const Thin lora = random_thin(random, 40, 20, 2, false);
  layer.node.feed("down", lora.down_value());
  layer.node.feed("up", lora.up_value());
  for (const int64_t first : {int64_t{3}, int64_t{1000}, INT64_MAX}) {
    layer.node.feed("first_mask_row", ints({1}, {first}));
    expect_same_values(run(layer.node, {2, 5}), wanted, "LoRA of no row");
  }
});

}  // namespace
}  // namespace bita::tests
