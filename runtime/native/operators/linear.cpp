#include "linear.h"

#include <algorithm>

#include "../kernels/roads.h"
#include "lora.h"

namespace bita {
namespace {

constexpr int64_t kGroupTiles = 2 * kGroup / kTile;
constexpr int64_t kRowsAtATime = 32;  // rows of gates that a thread keeps

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
  const LinearTask all{&weights_, rows.as<uint8_t>(), num_rows, out, outputs_};
  node.parallel(weights_.tiles(), [&](int64_t tile) {
    const int64_t first = tile * kTile, last = std::min(outputs_, first + kTile);
    LinearTask task = all;
    task.out = out + first;
    kernel.linear(task, tile, tile + 1);
    if (!bias_ && !has_lora) return;
    for (int64_t row = 0; row < num_rows; ++row) {
      float* place = out + row * outputs_ + first;
      if (bias_) add_bias(bias_ + first, last - first, place);
      lora.add(row, first, last, place);
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
  const int64_t blocks = num_blocks(outputs_), bytes = row_bytes(blocks);
  uint8_t* out = node.output<uint8_t>(0, {num_rows, bytes});
  Lora lora(node, 5, inputs_, 2 * outputs_);
  lora.read(node, rows.as<uint8_t>(), num_rows);
  const bool has_lora = lora.is_active(num_rows);
  const Kernels& kernel = kernels();
  node.parallel(groups_, [&](int64_t group) {
    float both[kRowsAtATime][2 * kGroup];
    const int64_t first = group * kGroup, last = std::min(outputs_, first + kGroup);
    for (int64_t start = 0; start < num_rows; start += kRowsAtATime) {
      const int64_t count = std::min(kRowsAtATime, num_rows - start);
      kernel.linear({&weights_, rows.as<uint8_t>() + start * row_bytes(weights_.blocks()), count,
                     both[0], 2 * kGroup},
                    group * kGroupTiles, (group + 1) * kGroupTiles);
      for (int64_t row = 0; row < count; ++row) {
        float *gate = both[row], *up = both[row] + kGroup;
        if (bias_) {
          add_bias(bias_ + first, last - first, gate);
          add_bias(bias_ + outputs_ + first, last - first, up);
        }
        if (has_lora) {
          lora.add(start + row, first, last, gate);
          lora.add(start + row, outputs_ + first, outputs_ + last, up);
        }
        kernel.gate(gate, up, is_gelu_, last - first, group, blocks, out + (start + row) * bytes);
      }
    }
  });
}

}  // namespace bita
