#include "mlp_sublayer.h"

#include "scratch.h"

namespace bita {
namespace {

constexpr size_t kFirstMaskRow = 15;
constexpr LinearPorts kGateUp = {3, kFirstMaskRow, "gate_up_bits"},
                      kDown = {9, kFirstMaskRow, "down_bits"};

}  // namespace

MlpSublayer::MlpSublayer(const NodeInfo& info)
    : residual_(info),
      gate_up_(info, kGateUp, residual_.size(), info.size("intermediate_size")),
      down_(info, kDown, info.size("intermediate_size"), residual_.size()) {}

void MlpSublayer::run(const NodeRun& node) const {
  thread_local Scratch<uint8_t> normed_rows, inner_rows;
  const Tensor input = residual_.read(node);
  const float* hidden = input.as<float>();
  const int64_t num_rows = input.dims[0], size = residual_.size();
  float* out = node.output<float>(0, {num_rows, size});
  uint8_t* normed = normed_rows.take(num_rows * residual_.row_bytes());
  uint8_t* inner = inner_rows.take(num_rows * gate_up_.row_bytes());
  const MaskRows masks = mask_rows(node, kFirstMaskRow, num_rows);
  Lora gate_up_lora = gate_up_.lora(node, masks), down_lora = down_.lora(node, masks);
  const auto add = [&](int64_t row, int64_t first, int64_t last, float* values) {
    residual_.add(hidden + row * size, first, last, values);
  };
  run_phases(node, residual_.norm(hidden, num_rows, normed), gate_up_lora.read(normed),
             gate_up_.phase(normed, num_rows, inner, gate_up_lora), down_lora.read(inner),
             down_.phase(inner, num_rows, kTile, out, down_lora, add),
             residual_.add_normed(hidden, num_rows, out));
}

}  // namespace bita
