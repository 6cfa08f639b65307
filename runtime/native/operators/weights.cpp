#include "weights.h"

namespace bita {

Weights read_weights(const NodeInfo& info, size_t first, int64_t bits, int64_t inputs,
                     int64_t outputs) {
  if (bits != 4 && bits != 8) throw std::runtime_error("bits is " + std::to_string(bits));
  Weights weights{};
  weights.inputs = inputs;
  weights.outputs = outputs;
  weights.bits = static_cast<int>(bits);
  const Tensor values = info.constant(first), scales = info.constant(first + 1);
  const Tensor minima = info.constant(first + 2);
  const Dims per_block = {weights.tiles(), weights.blocks(), kTile};
  check_dims("values", values, {weights.tiles(), weights.blocks(), weights.block_bytes()});
  check_dims("scales", scales, per_block);
  if (minima) check_dims("minima", minima, per_block);
  if (values.type != kByte || scales.type != kHalf || (minima && minima.type != kHalf))
    throw std::runtime_error("values, scales or minima are of a wrong type");
  weights.values = values.as<uint8_t>();
  weights.scales = scales.as<uint16_t>();
  weights.minima = minima.as<uint16_t>();
  return weights;
}

const float* read_vector(const NodeInfo& info, size_t index, int64_t size) {
  const Tensor vector = info.constant(index);
  if (!vector) return nullptr;
  check_dims("a vector", vector, {size});
  if (vector.type != kFloat) throw std::runtime_error("a vector is not of floats");
  return vector.as<float>();
}

int64_t check_rows(const Tensor& rows, int64_t blocks) {
  check_dims("the quantized rows", rows, {-1, row_bytes(blocks)});
  return rows.dims[0];
}

}  // namespace bita
