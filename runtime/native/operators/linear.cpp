#include "linear.h"

#include "../kernels/isa.h"

namespace bita {
namespace {

void add_bias(const float* bias, int64_t size, float* out) {
  for (int64_t i = 0; i < size; ++i) out[i] += bias[i];
}

bool reads_gelu(const NodeInfo& info) {
  const std::string activation = info.text("activation");
  if (activation != "silu" && activation != "gelu_tanh")
    throw std::runtime_error("activation is " + activation + ", not silu or gelu_tanh");
  return activation == "gelu_tanh";
}

int64_t read_layer(const NodeInfo& info) {
  const int64_t layer = info.integer("layer");
  if (layer < 0) throw std::runtime_error("layer is " + std::to_string(layer) + ", not 0 or more");
  return layer;
}

}  // namespace

Linear::Linear(const NodeInfo& info, const LinearPorts& ports, int64_t inputs, int64_t outputs)
    : ports_(ports),
      outputs_(outputs),
      layer_(read_layer(info)),
      weights_(read_weights(info, ports.values, info.integer(ports.bits), inputs, outputs)),
      bias_(read_vector(info, ports.values + 3, outputs)) {}

void Linear::run(const NodeRun& node) const {
  const Tensor rows = node.input(0);
  const int64_t num_rows = check_rows(rows, weights_.blocks());
  float* out = node.output<float>(0, {num_rows, outputs_});
  Lora thin = lora(node, mask_rows(node, ports_.first_mask_row, num_rows));
  run_phases(node, thin.read(rows.as<uint8_t>()),
             phase(rows.as<uint8_t>(), num_rows, kTile, out, thin,
                   [](int64_t, int64_t, int64_t, const float*) {}));
}

void Linear::multiply(const uint8_t* rows, int64_t row, int64_t count, int64_t first, int64_t last,
                      float* out) const {
  kernels().linear({&weights_, rows + row * row_bytes(), count, out, outputs_}, first / kTile,
                   num_tiles(last));
  for (int64_t i = 0; bias_ && i < count; ++i)
    add_bias(bias_ + first, last - first, out + i * outputs_);
}

GatedLinear::GatedLinear(const NodeInfo& info, const LinearPorts& ports, int64_t inputs,
                         int64_t outputs)
    : ports_(ports),
      outputs_(outputs),
      groups_((outputs_ + kGroup - 1) / kGroup),
      layer_(read_layer(info)),
      is_gelu_(reads_gelu(info)),
      weights_(
          read_weights(info, ports.values, info.integer(ports.bits), inputs, groups_ * 2 * kGroup)),
      bias_(read_vector(info, ports.values + 3, 2 * outputs_)) {}

void GatedLinear::run(const NodeRun& node) const {
  const Tensor rows = node.input(0);
  const int64_t num_rows = check_rows(rows, weights_.blocks());
  uint8_t* out = node.output<uint8_t>(0, {num_rows, row_bytes()});
  Lora thin = lora(node, mask_rows(node, ports_.first_mask_row, num_rows));
  run_phases(node, thin.read(rows.as<uint8_t>()), phase(rows.as<uint8_t>(), num_rows, out, thin));
}

void GatedLinear::multiply(const uint8_t* rows, int64_t row, int64_t count, int64_t group,
                           Both& both) const {
  const int64_t first = group * kGroup, size = std::min(kGroup, outputs_ - first);
  kernels().linear(
      {&weights_, rows + row * bita::row_bytes(weights_.blocks()), count, both[0], 2 * kGroup},
      group * kGroupTiles, (group + 1) * kGroupTiles);
  for (int64_t i = 0; bias_ && i < count; ++i) {
    add_bias(bias_ + first, size, both[i]);
    add_bias(bias_ + outputs_ + first, size, both[i] + kGroup);
  }
}

void GatedLinear::activate(const Both& both, int64_t row, int64_t count, int64_t group,
                           uint8_t* out) const {
  const int64_t size = std::min(kGroup, outputs_ - group * kGroup);
  for (int64_t i = 0; i < count; ++i)
    kernels().gate(both[i], both[i] + kGroup, is_gelu_, size, group, num_blocks(outputs_),
                   out + (row + i) * row_bytes());
}

}  // namespace bita
