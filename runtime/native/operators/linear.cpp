#include "linear.h"

#include "../kernels/roads.h"

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

Linear::Linear(const NodeInfo& info, const LinearPorts& ports, int64_t inputs, int64_t outputs)
    : ports_(ports),
      inputs_(inputs),
      outputs_(outputs),
      weights_(read_weights(info, ports.values, info.integer(ports.bits), inputs, outputs)),
      bias_(read_vector(info, ports.values + 3, outputs)) {}

void Linear::run(const NodeRun& node) const {
  const Tensor rows = node.input(0);
  const int64_t num_rows = check_rows(rows, weights_.blocks());
  float* out = node.output<float>(0, {num_rows, outputs_});
  Lora thin = lora(node, num_rows);
  run_phases(node, thin.read(rows.as<uint8_t>()), thin.sum(),
             phase(rows.as<uint8_t>(), num_rows, kTile, out, thin,
                   [](int64_t, int64_t, int64_t, const float*) {}));
}

void Linear::multiply(const uint8_t* rows, int64_t row, int64_t count, int64_t first, int64_t last,
                      const Lora& lora, float* out) const {
  float* place = out + row * outputs_ + first;
  kernels().linear({&weights_, rows + row * row_bytes(), count, place, outputs_}, first / kTile,
                   num_tiles(last));
  if (!bias_ && !lora.is_active()) return;
  for (int64_t i = 0; i < count; ++i, place += outputs_) {
    if (bias_) add_bias(bias_ + first, last - first, place);
    lora.add(row + i, first, last, place);
  }
}

GatedLinear::GatedLinear(const NodeInfo& info, const LinearPorts& ports, int64_t inputs,
                         int64_t outputs)
    : ports_(ports),
      inputs_(inputs),
      outputs_(outputs),
      groups_((outputs_ + kGroup - 1) / kGroup),
      is_gelu_(reads_gelu(info)),
      weights_(
          read_weights(info, ports.values, info.integer(ports.bits), inputs, groups_ * 2 * kGroup)),
      bias_(read_vector(info, ports.values + 3, 2 * outputs_)) {}

void GatedLinear::run(const NodeRun& node) const {
  const Tensor rows = node.input(0);
  const int64_t num_rows = check_rows(rows, weights_.blocks());
  uint8_t* out = node.output<uint8_t>(0, {num_rows, row_bytes()});
  Lora thin = lora(node, num_rows);
  run_phases(node, thin.read(rows.as<uint8_t>()), thin.sum(),
             phase(rows.as<uint8_t>(), num_rows, out, thin));
}

void GatedLinear::run_groups(const uint8_t* rows, const RowSplit::Piece& piece, const Lora& lora,
                             uint8_t* out) const {
  for (int64_t group = piece.first; group < piece.last; ++group)
    for (int64_t start = 0; start < piece.count; start += kRowsAtATime)
      run_group(rows, piece.row + start, std::min(kRowsAtATime, piece.count - start), group, lora,
                out);
}

void GatedLinear::run_group(const uint8_t* rows, int64_t first_row, int64_t num_rows, int64_t group,
                            const Lora& lora, uint8_t* out) const {
  float both[kRowsAtATime][2 * kGroup];
  const Kernels& kernel = kernels();
  const int64_t first = group * kGroup, last = std::min(outputs_, first + kGroup);
  const int64_t blocks = num_blocks(outputs_);
  kernel.linear({&weights_, rows + first_row * bita::row_bytes(weights_.blocks()), num_rows,
                 both[0], 2 * kGroup},
                group * kGroupTiles, (group + 1) * kGroupTiles);
  for (int64_t i = 0; i < num_rows; ++i) {
    const int64_t row = first_row + i;
    float *gate = both[i], *up = both[i] + kGroup;
    if (bias_) {
      add_bias(bias_ + first, last - first, gate);
      add_bias(bias_ + outputs_ + first, last - first, up);
    }
    lora.add(row, first, last, gate);
    lora.add(row, outputs_ + first, outputs_ + last, up);
    kernel.gate(gate, up, is_gelu_, last - first, group, blocks, out + row * row_bytes());
  }
}

}  // namespace bita
