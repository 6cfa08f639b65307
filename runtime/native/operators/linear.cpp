#include "linear.h"

#include <algorithm>

#include "../kernels/roads.h"
#include "lora.h"

namespace bita {
namespace {

constexpr int64_t kGroupTiles = 2 * kGroup / kTile;
constexpr int64_t kRowsAtATime = 32;  // rows of gates that a thread keeps
constexpr int64_t kRowGroup = 64;     // rows that one thread takes of many, with all their outputs
constexpr int64_t kSlices = 8;        // of the outputs, of a group of rows

// A step of few rows is split by outputs, so that each thread reads its part of the weights. Many
// rows are split by rows, so that what a thread wrote of a row is in its cache when the next
// operator reads it: body(first row, rows, first unit, last unit).
template <class Body>
void split(const NodeRun& node, int64_t num_rows, int64_t units, const Body& body) {
  if (!num_rows) return;
  if (num_rows < 2 * kRowGroup) {
    node.parallel(units, [&](int64_t unit) { body(0, num_rows, unit, unit + 1); });
    return;
  }
  const int64_t groups = (num_rows + kRowGroup - 1) / kRowGroup, slices = std::min(kSlices, units);
  node.parallel(
      groups * slices,
      [&](int64_t i) {
        const int64_t first = i / slices * kRowGroup, slice = i % slices;
        body(first, std::min(kRowGroup, num_rows - first), units * slice / slices,
             units * (slice + 1) / slices);
      },
      groups * slices);
}

void add_bias(const float* bias, int64_t size, float* out) {
  for (int64_t i = 0; i < size; ++i) out[i] += bias[i];
}

bool reads_gelu(const NodeInfo& info) {
  const std::string activation = info.text("activation");
  if (activation != "silu" && activation != "gelu_tanh")
    throw std::runtime_error("activation is " + activation + ", not silu or gelu_tanh");
  return activation == "gelu_tanh";
}

}  // namespace

Linear::Linear(const NodeInfo& info)
    : inputs_(info.size("in_features")),
      outputs_(info.size("out_features")),
      weights_(read_weights(info, 1, inputs_, outputs_)),
      bias_(read_vector(info, 4, outputs_)) {}

void Linear::run(const NodeRun& node) const {
  const Tensor rows = node.input(0);
  const int64_t num_rows = check_rows(rows, weights_.blocks());
  float* out = node.output<float>(0, {num_rows, outputs_});
  Lora lora(node, 5, inputs_, outputs_);
  lora.read(node, rows.as<uint8_t>(), num_rows);
  const bool has_lora = lora.is_active(num_rows);
  const Kernels& kernel = kernels();
  const int64_t stride = row_bytes(weights_.blocks());
  split(node, num_rows, weights_.tiles(),
        [&](int64_t row, int64_t count, int64_t tile, int64_t last_tile) {
          const int64_t first = tile * kTile, last = std::min(outputs_, last_tile * kTile);
          float* place = out + row * outputs_ + first;
          kernel.linear({&weights_, rows.as<uint8_t>() + row * stride, count, place, outputs_},
                        tile, last_tile);
          if (!bias_ && !has_lora) return;
          for (int64_t i = 0; i < count; ++i, place += outputs_) {
            if (bias_) add_bias(bias_ + first, last - first, place);
            lora.add(row + i, first, last, place);
          }
        });
}

GatedLinear::GatedLinear(const NodeInfo& info)
    : inputs_(info.size("in_features")),
      outputs_(info.size("out_features")),
      groups_((outputs_ + kGroup - 1) / kGroup),
      is_gelu_(reads_gelu(info)),
      weights_(read_weights(info, 1, inputs_, groups_ * 2 * kGroup)),
      bias_(read_vector(info, 4, 2 * outputs_)) {}

void GatedLinear::run(const NodeRun& node) const {
  const Tensor rows = node.input(0);
  const int64_t num_rows = check_rows(rows, weights_.blocks());
  uint8_t* out = node.output<uint8_t>(0, {num_rows, row_bytes(num_blocks(outputs_))});
  Lora lora(node, 5, inputs_, 2 * outputs_);
  lora.read(node, rows.as<uint8_t>(), num_rows);
  const bool has_lora = lora.is_active(num_rows);
  const Kernels& kernel = kernels();
  split(node, num_rows, groups_, [&](int64_t row, int64_t count, int64_t group, int64_t last) {
    for (; group < last; ++group)
      for (int64_t start = 0; start < count; start += kRowsAtATime)
        run_group(kernel, rows.as<uint8_t>(), row + start, std::min(kRowsAtATime, count - start),
                  group, has_lora ? &lora : nullptr, out);
  });
}

void GatedLinear::run_group(const Kernels& kernel, const uint8_t* rows, int64_t first_row,
                            int64_t num_rows, int64_t group, const Lora* lora, uint8_t* out) const {
  float both[kRowsAtATime][2 * kGroup];
  const int64_t first = group * kGroup, last = std::min(outputs_, first + kGroup);
  const int64_t blocks = num_blocks(outputs_);
  kernel.linear(
      {&weights_, rows + first_row * row_bytes(weights_.blocks()), num_rows, both[0], 2 * kGroup},
      group * kGroupTiles, (group + 1) * kGroupTiles);
  for (int64_t i = 0; i < num_rows; ++i) {
    const int64_t row = first_row + i;
    float *gate = both[i], *up = both[i] + kGroup;
    if (bias_) {
      add_bias(bias_ + first, last - first, gate);
      add_bias(bias_ + outputs_ + first, last - first, up);
    }
    if (lora) {
      lora->add(row, first, last, gate);
      lora->add(row, outputs_ + first, outputs_ + last, up);
    }
    kernel.gate(gate, up, is_gelu_, last - first, group, blocks, out + row * row_bytes(blocks));
  }
}

}  // namespace bita
