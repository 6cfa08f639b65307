#include "weights.h"

namespace bita {

Weights read_weights(const NodeInfo& info, size_t first, int64_t bits, int64_t inputs,
                     int64_t outputs) {
  if (bits != 4 && bits != 8)
    throw std::runtime_error("bits is " + std::to_string(bits) + ", not 4 or 8");
  Weights weights{};
  weights.inputs = inputs;
  weights.outputs = outputs;
  weights.bits = static_cast<int>(bits);
  const Tensor values = info.constant(first), scales = info.constant(first + 1);
  const Tensor minima = info.constant(first + 2);
  const Dims per_block = {weights.tiles(), weights.blocks(), kTile};
  check_dims(info.name(first), values, {weights.tiles(), weights.blocks(), weights.block_bytes()});
  check_dims(info.name(first + 1), scales, per_block);
  if (minima) check_dims(info.name(first + 2), minima, per_block);
  weights.values = values.as<uint8_t>();
  weights.scales = scales.as<uint16_t>();
  weights.minima = minima.as<uint16_t>();
  return weights;
}

const float* read_vector(const NodeInfo& info, size_t index, int64_t size) {
  const Tensor vector = info.constant(index);
  if (!vector) return nullptr;
  check_dims(info.name(index), vector, {size});
  return vector.as<float>();
}

int64_t check_rows(const Tensor& rows, int64_t blocks) {
  check_dims("the quantized rows", rows, {-1, row_bytes(blocks)});
  return rows.dims[0];
}

}  // namespace bita
