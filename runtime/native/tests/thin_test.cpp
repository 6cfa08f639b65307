// Kernels for LoRA.
#include "thin.h"

#include <cmath>

namespace bita::tests {
namespace {

struct Sizes {
  int64_t inputs, outputs, rank, rows;

  std::string text() const {
    return std::to_string(rows) + " rows, " + std::to_string(inputs) + " to " +
           std::to_string(outputs) + ", rank " + std::to_string(rank);
  }
};

const std::vector<Sizes>& all_sizes() {
  static const std::vector<Sizes> all = {
      {1, 1, 1, 1},   {31, 17, 3, 2},  {33, 40, 8, 3},   {576, 64, 16, 2}, {64, 16, 17, 4},
      {70, 33, 5, 5}, {100, 15, 2, 9}, {96, 130, 32, 7}, {40, 48, 4, 17},
  };
  return all;
}

// Rows times down, then times up, added to outputs, with the slices of the layer.
struct Products {
  std::vector<float> thin, out;
};

Products products(const Kernels& isa, const Sizes& sizes, const Value& rows, const Thin& lora,
                  const std::vector<float>& outputs, bool at_once) {
  const Value down = lora.down_value(), up = lora.up_value();
  const int64_t blocks = num_blocks(sizes.inputs);
  const auto* downs = reinterpret_cast<const uint16_t*>(down.bytes.data()) +
                      kThinLayer * sizes.rank * blocks * kBlock;
  const auto* ups = reinterpret_cast<const uint16_t*>(up.bytes.data()) +
                    kThinLayer * num_tiles(sizes.outputs) * sizes.rank * kTile;
  Products made{std::vector<float>(static_cast<size_t>(sizes.rows * sizes.rank), 7.0f), outputs};
  const int64_t rows_at_once = at_once ? sizes.rows : 1, columns = at_once ? sizes.rank : 1;
  for (int64_t row = 0; row < sizes.rows; row += rows_at_once) {
    float* thin = made.thin.data() + row * sizes.rank;
    for (int64_t first = 0; first < sizes.rank; first += columns)
      isa.thin_in({rows.bytes.data() + row * row_bytes(blocks), rows_at_once, blocks, downs,
                   sizes.rank, thin},
                  first, first + columns);
    isa.thin_out({thin, rows_at_once, sizes.rank, ups, sizes.outputs,
                  made.out.data() + row * sizes.outputs, sizes.outputs});
  }
  return made;
}

// Compare with products in double precision.
void expect_right(const Products& found, const Sizes& sizes, const Value& rows, const Thin& lora,
                  const std::vector<float>& outputs) {
  const std::vector<double> inputs = meaning(rows, sizes.inputs);
  std::vector<double> thin(found.thin.size(), 0.0), out(outputs.begin(), outputs.end());
  for (int64_t row = 0; row < sizes.rows; ++row)
    for (int64_t k = 0; k < sizes.rank; ++k) {
      double& sum = thin[static_cast<size_t>(row * sizes.rank + k)];
      for (int64_t i = 0; i < sizes.inputs; ++i)
        sum += inputs[static_cast<size_t>(row * sizes.inputs + i)] *
               lora.down[static_cast<size_t>(i * sizes.rank + k)];
      for (int64_t n = 0; n < sizes.outputs; ++n)
        out[static_cast<size_t>(row * sizes.outputs + n)] +=
            sum * lora.up[static_cast<size_t>(k * sizes.outputs + n)];
    }
  expect_close(found.thin, thin, 1e-5, "thin_in, " + sizes.text());
  expect_close(found.out, out, 1e-5, "thin_out, " + sizes.text());
}

const Adds thin("thin products are right, with the same bits on all ISAs and for a row alone", [] {
  Random random(80);
  for (const Sizes& sizes : all_sizes()) {
    const Thin lora = random_thin(random, sizes.inputs, sizes.outputs, sizes.rank, false);
    const Value rows = quantized(random.reals(sizes.rows * sizes.inputs, 2.0f), sizes.inputs);
    const std::vector<float> outputs = random.reals(sizes.rows * sizes.outputs);
    const Products wanted = products(kPlainKernels, sizes, rows, lora, outputs, true);
    expect_right(wanted, sizes, rows, lora, outputs);
    for (const Kernels* isa : isas())
      for (const bool at_once : {true, false}) {
        const Products found = products(*isa, sizes, rows, lora, outputs, at_once);
        const std::string what = std::string(" on ") + isa->name + ", " + sizes.text();
        expect_same(found.thin, wanted.thin, "thin_in" + what);
        expect_same(found.out, wanted.out, "thin_out" + what);
      }
  }
});

}  // namespace
}  // namespace bita::tests
