// Sublayers have the bits of the equivalent single operators.
#include "sublayers.h"

#include <algorithm>
#include <cmath>

namespace bita::tests {
namespace {

struct Scene {
  const char* name;
  Shape shape;
  Amount amount;
  SublayerForm form;
};

Shape shape_of(int64_t num_heads, int64_t num_kv_heads, int64_t head_dim, int64_t half,
               bool is_half, bool has_norms, float softcap = 0, int64_t window = 0) {
  return {num_heads, num_kv_heads, head_dim, half, is_half, has_norms, 0.4f, softcap, window};
}

constexpr LinearForm kFour = {4, false, false}, kFourMinima = {4, true, false};
constexpr LinearForm kFourBias = {4, false, true}, kFourBoth = {4, true, true};
constexpr LinearForm kEight = {8, false, false}, kEightMinima = {8, true, false};
constexpr LinearForm kEightBias = {8, false, true}, kEightBoth = {8, true, true};

// A form: size, layers, post norm, residual scale, rank, first mask row.
const std::vector<Scene>& scenes() {
  static const std::vector<Scene> all = {
      {"one head, an empty text",
       shape_of(1, 1, 16, 8, false, false),
       {{0}, {1}},
       {1, kFour, kFour}},
      {"one row",
       shape_of(2, 2, 32, 16, true, false),
       {{37}, {1}},
       {33, kEightBias, kFourBias, false, 0.5f}},
      {"branches, and all options of a sublayer",
       shape_of(4, 2, 32, 8, true, true),
       {{63}, {9}},
       {70, kFourBoth, kEightBoth, true, 0.22f, 3, 4}},
      {"groups of three",
       shape_of(6, 2, 48, 5, false, true),
       {{64}, {17}},
       {100, kFourMinima, kFourMinima, false, 1, 1, 0}},
      {"a group of sixteen",
       shape_of(16, 1, 16, 0, true, false),
       {{100}, {5}},
       {47, kEightMinima, kFour, true}},
      {"texts that share pages",
       shape_of(3, 1, 32, 16, true, false),
       {{40, 33, 50}, {5, 1, 7}, 0, 2},
       {20, kFourBias, kEight, false, -0.3f, 17, 11}},
      {"a prefix, and a text without rows",
       shape_of(2, 1, 80, 40, false, true),
       {{20, 0, 5}, {3, 0, 4}, 70},
       {64, kEightBoth, kFourMinima, true, 1, 2, 1}},
      {"a window, a cap, a prefix",
       shape_of(3, 1, 32, 8, false, true, 5.0f, 70),
       {{150, 20}, {7, 9}, 20},
       {31, kFour, kEightBias, false, 2.5f}},
      {"a full cache",
       shape_of(2, 1, 32, 8, true, false),
       {{100, 60}, {3, 9}, 17, 0, false, true},
       {16, kFourBoth, kFourBoth, true, 0.7f, 4, 11}},
      {"a long prompt",
       shape_of(3, 1, 16, 8, true, true),
       {{0}, {130}, 0, 0, true},
       {33, kFour, kFourBias, false, 1, 2, 120}},
      {"two prompts",
       shape_of(2, 2, 16, 4, false, false, 0, 50),
       {{20, 0}, {100, 30}, 9, 1, true},
       {17, kEight, kFour, true, 0.5f, 3, 1000}},
  };
  return all;
}

int64_t row_count(const Step& step) { return static_cast<int64_t>(step.rows.size()); }

Threads next_threads() {
  static uint32_t turn = 0;
  ++turn;
  return {1 + static_cast<int>(turn % 4), turn};
}

// Expect a node's outputs to equal those of a chain.
void expect_chain(const Node& node, const std::vector<Value>& chain, const std::string& what) {
  expect_same_values(run_everywhere(node, what), chain, what + ", as a chain");
}

const Adds attention("AttentionSublayer has the bits of norm, Linear, Attention, Linear and sum",
                     [] {
                       Random random(60);
                       for (const Scene& scene : scenes()) {
                         const Step step = random_step(random, scene.shape, scene.amount);
                         const Sublayer sublayer =
                             attention_sublayer(random, scene.form, scene.shape);
                         const Value hidden = random_hidden(random, row_count(step), scene.form);
                         expect_chain(attention_node(sublayer, step, hidden),
                                      attention_chain(sublayer, step, hidden, next_threads()),
                                      scene.name);
                       }
                     });

const Adds attention_rows("AttentionSublayer has these bits for any number of rows", [] {
  Random random(61);
  for (int64_t rows = 1; rows <= 17; ++rows) {
    const Shape shape = shape_of(1 + rows % 2, 1, 16, rows % 9, rows % 3 == 0, rows % 5 == 0);
    const Step step = random_step(random, shape, {{rows * 7 % 20}, {rows}});
    const LinearForm forms[] = {kFour, kEightMinima, kFourBoth, kEight, kFourMinima};
    const SublayerForm form{27 + rows,
                            forms[rows % 5],
                            forms[rows % 4],
                            rows % 4 < 2,
                            1,
                            rows % 3,
                            std::max<int64_t>(rows - 4, 0)};
    const Sublayer sublayer = attention_sublayer(random, form, shape);
    const Value hidden = random_hidden(random, rows, form);
    expect_chain(attention_node(sublayer, step, hidden),
                 attention_chain(sublayer, step, hidden, next_threads()),
                 std::to_string(rows) + " rows");
  }
});

// Expect a row alone, after those that it sees were committed, to have the same bits as among all
// rows.
void expect_alone(Random& random, const Sublayer& sublayer, const Step& step, const Value& hidden,
                  const std::vector<Value>& found, const std::string& what) {
  Sublayer other = sublayer;
  for (int i = 0; i < 5; ++i) {
    const int64_t row = random.below(row_count(step));
    other.form.first_mask_row = row >= sublayer.form.first_mask_row ? 0 : 1;
    const Step alone = step.alone(found[1], static_cast<size_t>(row));
    Node one = attention_node(other, alone, rows_of(hidden, {row}));
    expect_same_values({run(one, next_threads())[0]}, {rows_of(found[0], {row})}, what + ", alone");
  }
}

const Adds attention_alone("AttentionSublayer: a row's bits do not depend on other rows", [] {
  Random random(62);
  for (const Scene& scene : scenes()) {
    const Step step = random_step(random, scene.shape, scene.amount);
    Sublayer sublayer = attention_sublayer(random, scene.form, scene.shape);
    const Value hidden = random_hidden(random, row_count(step), scene.form);
    Node all = attention_node(sublayer, step, hidden);
    expect_alone(random, sublayer, step, hidden, run(all, next_threads()), scene.name);
    sublayer.form.first_mask_row = 0;  // mask rows come last, but here rows are reordered
    Node node = attention_node(sublayer, step, hidden);
    const std::vector<Value> found = run(node, next_threads());
    std::vector<int64_t> order;
    const Step moved = step.reordered(random, order);
    Node other = attention_node(sublayer, moved, rows_of(hidden, order));
    expect_same_values(run(other, next_threads()), {rows_of(found[0], order), found[1]},
                       std::string(scene.name) + ", reordered");
  }
});

struct Sizes {
  int64_t hidden, inner, rows;
  SublayerForm form;  // its hidden size is `hidden`

  std::string text() const {
    return std::to_string(hidden) + "x" + std::to_string(inner) + ", " + std::to_string(rows) +
           " rows";
  }
};

const std::vector<Sizes>& all_sizes() {
  static const std::vector<Sizes> all = {
      {1, 1, 1, {1, kFour, kFour}},
      {33, 17, 3, {33, kFourBoth, kEightBoth, true, 0.5f}},
      {31, 15, 5, {31, kEightBias, kFourMinima, false, 1, 1, 4}},
      {100, 40, 7, {100, kFour, kFourBias, true, 1, 3, 0}},
      {96, 50, 8, {96, kEightMinima, kEight, false, 0.22f, 16, 5}},
      {64, 32, 9, {64, kFourBoth, kFourBoth, true, -2, 4, 9}},
      {129, 33, 10, {129, kFourBoth, kFour, false, 1, 5, 1}},
      {50, 100, 17, {50, kEightBoth, kFourBoth, true, 0.3f, 17, 11}},
      {48, 47, 130, {48, kFourMinima, kEightMinima, true, 1}},
      {40, 35, 131, {40, kEight, kFour, false, 3, 3, 120}},
      {33, 1, 128, {33, kFour, kEightBias, false, 1, 2, 0}},
  };
  return all;
}

const char* next_activation() {
  static bool is_gelu = false;
  is_gelu = !is_gelu;
  return is_gelu ? "gelu_tanh" : "silu";
}

// Compare rows in another order, in which mask rows are last, and single rows.
void expect_rows_apart(Random& random, const Node& node, const SublayerForm& form, int64_t num_rows,
                       const Value& wanted, const std::string& what) {
  const int64_t first = form.rank ? std::min(form.first_mask_row, num_rows) : num_rows;
  std::vector<int64_t> order = random_order(random, 0, first);
  for (const int64_t row : random_order(random, first, num_rows)) order.push_back(row);
  Node other = node;
  const Value hidden = other["hidden"];
  other["hidden"] = rows_of(hidden, order);
  expect_same_values(run(other, next_threads()), {rows_of(wanted, order)}, what + ", reordered");
  for (int i = 0; i < 5; ++i) {
    const int64_t row = random.below(num_rows);
    other["hidden"] = rows_of(hidden, {row});
    if (form.rank) other["first_mask_row"] = ints({1}, {row >= first ? 0 : 1});
    expect_same_values(run(other, next_threads()), {rows_of(wanted, {row})}, what + ", alone");
  }
}

const Adds mlp("MlpSublayer has the bits of norm, GatedLinear, Linear and sum, for each row", [] {
  Random random(63);
  for (const Sizes& sizes : all_sizes()) {
    const char* activation = next_activation();
    const Sublayer sublayer = mlp_sublayer(random, sizes.form, sizes.inner);
    const Value hidden = random_hidden(random, sizes.rows, sizes.form);
    const Node node = mlp_node(sublayer, activation, hidden);
    const std::vector<Value> chain = mlp_chain(sublayer, activation, hidden, next_threads());
    expect_chain(node, chain, sizes.text());
    expect_rows_apart(random, node, sizes.form, sizes.rows, chain[0], sizes.text());
  }
});

const Adds mlp_rows("MlpSublayer has these bits for any number of rows", [] {
  Random random(64);
  for (int64_t rows = 1; rows <= 17; ++rows) {
    const LinearForm forms[] = {kFourMinima, kEight, kFourBias, kEightBoth, kFour};
    const SublayerForm form{40 - rows, forms[rows % 5], forms[rows % 4], rows % 3 == 0,
                            0.9f,      rows % 4,        rows / 2};
    const char* activation = next_activation();
    const Sublayer sublayer = mlp_sublayer(random, form, 29 + rows);
    const Value hidden = random_hidden(random, rows, form);
    expect_chain(mlp_node(sublayer, activation, hidden),
                 mlp_chain(sublayer, activation, hidden, next_threads()),
                 std::to_string(rows) + " rows");
  }
});

const Adds no_rows("Sublayers of no rows, with LoRA and norms or without", [] {
  Random random(65);
  const Shape shape = shape_of(2, 1, 16, 8, true, false);
  for (const bool has_all : {false, true}) {
    const SublayerForm form{40, kFour, kFour, has_all, 1, has_all ? 3 : 0, 0};
    const Value nothing = random_hidden(random, 0, form);
    const std::vector<int64_t> dims = {0, 40};
    const Step step = random_step(random, shape, {{20}, {0}});
    for (const bool is_bound : {true, false}) {
      Node node = attention_node(attention_sublayer(random, form, shape), step, nothing);
      if (!is_bound) node.binds.clear();
      const std::vector<Value> found = run(node, {2, 0});
      expect(found[0].dims == dims, "no rows of AttentionSublayer");
      expect_same(found[1].bytes, step.past.bytes, "the cache");
    }
    Node node = mlp_node(mlp_sublayer(random, form, 20), "silu", nothing);
    expect(run(node, {2, 0})[0].dims == dims, "no rows of MlpSublayer");
  }
});

const Adds other_memory("AttentionSublayer copies a cache that is not bound", [] {
  Random random(66);
  const Shape shape = shape_of(2, 1, 16, 8, true, false);
  const Step step = random_step(random, shape, {{20}, {4}});
  const Sublayer sublayer = attention_sublayer(random, {}, shape);
  const Value hidden = random_hidden(random, 4, {});
  Node bound = attention_node(sublayer, step, hidden), apart = bound;
  apart.binds.clear();
  expect_same_values(run(apart, {2, 1}), run(bound), "other memory");
  expect_same(apart["past"].bytes, step.past.bytes, "the past is not written to");
  expect_same(apart["hidden"].bytes, hidden.bytes, "the residual stream is not written to");
});

// Expect all values of a row to be NaN, or none.
void expect_spoiled(const Value& rows, int64_t row, bool is_spoiled, const std::string& what) {
  for (const float x : rows_of(rows, {row}).cells<float>())
    expect(std::isnan(x) == is_spoiled, what + ", row " + std::to_string(row) + " next to NaN");
}

const Adds nan_rows("A row of NaN spoils only rows that see it", [] {
  Random random(67);
  const Shape shape = shape_of(2, 1, 16, 8, true, true);
  Step step = random_step(random, shape, {{20}, {12}});
  step.rows[0].seen = {0};
  for (const bool has_post_norm : {false, true}) {
    const SublayerForm form{40, kFour, kEight, has_post_norm, 0.5f, 2, 3};
    Value hidden = random_hidden(random, 12, form);
    for (int64_t i = 0; i < 40; ++i) hidden.set(5 * 40 + i, std::nanf(""));
    const Node attention = attention_node(attention_sublayer(random, form, shape), step, hidden);
    const Node mlp = mlp_node(mlp_sublayer(random, form, 33), "silu", hidden);
    Node both[] = {attention, mlp};
    const Value attended = run(both[0], {3, 1})[0], gated = run(both[1], {3, 1})[0];
    for (int64_t row = 0; row < 12; ++row) {
      const std::vector<int64_t>& seen = step.rows[static_cast<size_t>(row)].seen;
      expect_spoiled(attended, row, std::find(seen.begin(), seen.end(), 5) != seen.end(),
                     "attention");
      expect_spoiled(gated, row, row == 5, "MLP");
    }
  }
});

const Adds idle_lora("LoRA of no row, or of rank 0, adds nothing to a sublayer", [] {
  Random random(68);
  const Shape shape = shape_of(2, 1, 16, 8, false, false);
  const Step step = random_step(random, shape, {{20}, {4}});
  const SublayerForm form{40, kFour, kFour, false, 1, 3, 0};
  const Value hidden = random_hidden(random, 4, form);
  const Sublayer attention = attention_sublayer(random, form, shape);
  const Sublayer mlp = mlp_sublayer(random, form, 33);
  for (const bool is_mlp : {false, true}) {
    const auto node_of = [&](int64_t first_mask_row, bool has_rank) {
      Sublayer sublayer = is_mlp ? mlp : attention;
      sublayer.form.first_mask_row = first_mask_row;
      for (LinearLayer* layer : {&sublayer.first, &sublayer.second}) {
        if (first_mask_row < 0) layer->lora.reset();
        if (has_rank || first_mask_row < 0) continue;
        const Thin& lora = *layer->lora;
        layer->lora = random_thin(random, lora.inputs, lora.outputs, 0, lora.is_gated);
      }
      if (first_mask_row < 0) sublayer.form.rank = 0;
      return is_mlp ? mlp_node(sublayer, "silu", hidden) : attention_node(sublayer, step, hidden);
    };
    Node none = node_of(-1, true), thin = node_of(0, false);
    const std::vector<Value> wanted = run(none);
    expect_same_values(run(thin, {2, 1}), wanted, "rank 0");
    for (const int64_t first : {int64_t{4}, int64_t{1000}, INT64_MAX}) {
      Node far = node_of(first, true);
      expect_same_values(run(far, {2, 1}), wanted, "first_mask_row after all rows");
    }
  }
});

}  // namespace
}  // namespace bita::tests
