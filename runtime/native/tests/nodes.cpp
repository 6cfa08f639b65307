#include "nodes.h"

#include <algorithm>
#include <cmath>

#include "../kernels/numbers.h"
#include "../operators/ort.h"

namespace bita::tests {
namespace {

constexpr Type kHalfType = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;

size_t index(int64_t row, int64_t width, int64_t column) {
  return static_cast<size_t>(row * width + column);
}

// Index of the byte in a block that holds the value of an input, for an output of the tile.
size_t byte_of(int bits, int64_t input, int64_t output) {
  const int64_t line = bits == 4 ? input / 8 : input / 4;
  return static_cast<size_t>(line * 64 + 4 * output + input % 4);
}

Value packed_values(const BlockWeights& weights) {
  const int64_t blocks = num_blocks(weights.inputs), bytes = weights.bits == 4 ? 256 : 512;
  Value packed =
      zeros(ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, {num_tiles(weights.outputs), blocks, bytes});
  for (int64_t output = 0; output < weights.outputs; ++output)
    for (int64_t input = 0; input < blocks * kBlock; ++input) {
      const int value = weights.values[index(output, blocks * kBlock, input)];
      const int64_t block = output / kTile * blocks + input / kBlock;
      uint8_t& byte = packed.bytes[index(block, bytes, 0) +
                                   byte_of(weights.bits, input % kBlock, output % kTile)];
      const bool is_high = weights.bits == 4 && input % 8 >= 4;
      byte = static_cast<uint8_t>(byte | static_cast<uint8_t>(is_high ? value << 4 : value));
    }
  return packed;
}

Value packed_halves(const BlockWeights& weights, const std::vector<uint16_t>& cells) {
  const int64_t blocks = num_blocks(weights.inputs);
  Value packed = zeros(kHalfType, {num_tiles(weights.outputs), blocks, kTile});
  for (int64_t output = 0; output < weights.outputs; ++output)
    for (int64_t block = 0; block < blocks; ++block)
      packed.set((output / kTile * blocks + block) * kTile + output % kTile,
                 cells[index(output, blocks, block)]);
  return packed;
}

}  // namespace

double BlockWeights::at(int64_t output, int64_t input) const {
  const int64_t blocks = num_blocks(inputs);
  const int value = values[index(output, blocks * kBlock, input)];
  const size_t block = index(output, blocks, input / kBlock);
  const double scale = from_half(scales[block]);
  if (!minima.empty()) return scale * value + from_half(minima[block]);
  return scale * (bits == 4 ? value - 8 : value);
}

BlockWeights random_weights(Random& random, int64_t outputs, int64_t inputs, int bits,
                            bool minima) {
  const int64_t blocks = num_blocks(inputs);
  BlockWeights made{outputs, inputs, bits, {}, {}, {}};
  for (int64_t i = 0; i < outputs * blocks * kBlock; ++i) {
    const bool is_inside = i % (blocks * kBlock) < inputs;
    const auto value = static_cast<int>(random.below(bits == 4 ? 16 : 256));
    made.values.push_back(!is_inside ? 0 : bits == 4 ? value : value - 128);
  }
  for (int64_t i = 0; i < outputs * blocks; ++i) {
    made.scales.push_back(to_half(random.real(bits == 4 ? 0.1f : 0.01f)));
    if (minima) made.minima.push_back(to_half(random.real(0.5f)));
  }
  return made;
}

void fix_weights(Node& node, const BlockWeights& weights, const std::string& prefix) {
  node.set(prefix + "bits", weights.bits);
  node.fix(prefix + "values", packed_values(weights));
  node.fix(prefix + "scales", packed_halves(weights, weights.scales));
  if (!weights.minima.empty()) node.fix(prefix + "minima", packed_halves(weights, weights.minima));
}

Value quantized(const std::vector<float>& cells, int64_t size) {
  const int64_t count = static_cast<int64_t>(cells.size()) / size;
  const int64_t width = row_bytes(num_blocks(size));
  Value rows = zeros(ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, {count, width});
  for (int64_t row = 0; row < count; ++row)
    kPlainKernels.quantize(cells.data() + row * size, size, rows.bytes.data() + row * width);
  return rows;
}

std::vector<double> meaning(const Value& rows, int64_t size) {
  const int64_t blocks = num_blocks(size);
  std::vector<double> all;
  for (int64_t row = 0; row < rows.dims[0]; ++row) {
    const uint8_t* bytes = rows.bytes.data() + row * row_bytes(blocks);
    for (int64_t i = 0; i < size; ++i)
      all.push_back(static_cast<double>(row_scales(bytes, blocks)[i / kBlock]) *
                    static_cast<int8_t>(bytes[i]));
  }
  return all;
}

namespace {

std::string text_of(double number) {
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", number);
  return text;
}

double largest(const double* numbers, int64_t count) {
  double most = 0;
  for (int64_t i = 0; i < count; ++i) most = std::max(most, std::abs(numbers[i]));
  return most;
}

void expect_sums(const uint8_t* row, int64_t size, const std::string& what) {
  const int64_t blocks = num_blocks(size);
  for (int64_t block = 0; block < blocks; ++block) {
    int32_t sum = 0;
    for (int64_t i = block * kBlock; i < (block + 1) * kBlock; ++i) {
      sum += static_cast<int8_t>(row[i]);
      expect(i < size || row[i] == 0, what + ": a value past the end is not 0");
    }
    const float scale = row_scales(row, blocks)[block];
    expect(row_counts(row, blocks)[block] == sum, what + ": a count is wrong");
    expect(row_sums(row, blocks)[block] == scale * static_cast<float>(sum),
           what + ": a sum is wrong");
  }
}

}  // namespace

void expect_quantized(const Value& found, const std::vector<double>& wanted, int64_t size,
                      double slack, const std::string& what) {
  const int64_t count = static_cast<int64_t>(wanted.size()) / size, blocks = num_blocks(size);
  expect(found.dims == std::vector<int64_t>{count, row_bytes(blocks)}, what + ": a shape is wrong");
  if (found.bytes.size() != static_cast<size_t>(count * row_bytes(blocks))) return;
  const std::vector<double> numbers = meaning(found, size);
  for (int64_t row = 0; row < count; ++row) {
    const double* exact = wanted.data() + row * size;
    expect_sums(found.bytes.data() + row * row_bytes(blocks), size, what);
    const double error = slack * largest(exact, size);
    for (int64_t i = 0; i < size; ++i) {
      const int64_t start = i / kBlock * kBlock;
      const double step = largest(exact + start, std::min(kBlock, size - start)) / 127;
      const double off = std::abs(numbers[index(row, size, i)] - exact[i]);
      if (off <= step * 0.502 + 2 * error + 1e-9) continue;
      expect(false, what + ": number " + std::to_string(i) + " of row " + std::to_string(row) +
                        " is off by " + text_of(off) + " from " + text_of(exact[i]));
      return;
    }
  }
}

void expect_close(const std::vector<float>& found, const std::vector<double>& wanted, double slack,
                  const std::string& what) {
  expect(found.size() == wanted.size(), what + ": a size is wrong");
  if (found.size() != wanted.size()) return;
  const double most = largest(wanted.data(), static_cast<int64_t>(wanted.size()));
  for (size_t i = 0; i < found.size(); ++i) {
    const double off = std::abs(found[i] - wanted[i]);
    if (off <= slack * most) continue;
    expect(false, what + ": number " + std::to_string(i) + " is off by " + text_of(off) + " from " +
                      text_of(wanted[i]));
    return;
  }
}

void expect_same_values(const std::vector<Value>& found, const std::vector<Value>& wanted,
                        const std::string& what) {
  expect(found.size() == wanted.size(), what + ": other outputs");
  for (size_t i = 0; i < std::min(found.size(), wanted.size()); ++i) {
    const std::string which = what + ", output " + std::to_string(i);
    expect(found[i].dims == wanted[i].dims && found[i].type == wanted[i].type,
           which + ": another shape");
    expect_same(found[i].bytes, wanted[i].bytes, which);
  }
}

std::vector<Value> run_everywhere(const Node& node, const std::string& what) {
  static uint32_t order = 0;
  static int turn = 0;
  const auto run_copy = [&](const Threads& threads, int64_t processors) {
    use_processors(processors);
    Node copy = node;  // runs may write to bound inputs
    return run(copy, threads);
  };
  use_isa("plain");
  const std::vector<Value> wanted = run_copy({}, 1);
  for (const Kernels* isa : isas()) {
    use_isa(isa->name);
    ++turn;
    for (const int count : {1, 2, 3, 4}) {
      if (isa != isas().front() && count != 2 + turn % 3) continue;
      ++order;  // as many processors as threads or a few more, and sometimes the maximum
      const int64_t processors = order % 8 ? count + static_cast<int64_t>(order % 3) : 64;
      expect_same_values(run_copy({count, order}, processors), wanted,
                         what + " on " + isa->name + ", " + std::to_string(count) + " threads");
    }
  }
  use_isa(isas().front()->name);
  use_processors(kProcessors);
  return wanted;
}

Value rows_of(const Value& all, const std::vector<int64_t>& rows) {
  Value some{all.type, all.dims, {}};
  some.dims[0] = static_cast<int64_t>(rows.size());
  const auto width = static_cast<int64_t>(all.bytes.size()) / std::max<int64_t>(all.dims[0], 1);
  for (const int64_t row : rows)
    some.bytes.insert(some.bytes.end(), all.bytes.begin() + row * width,
                      all.bytes.begin() + (row + 1) * width);
  some.bytes.shrink_to_fit();
  return some;
}

std::vector<int64_t> random_order(Random& random, int64_t first, int64_t last) {
  std::vector<int64_t> order;
  for (int64_t i = first; i < last; ++i)
    order.insert(order.begin() + random.below(i - first + 1), i);
  return order;
}

}  // namespace bita::tests
