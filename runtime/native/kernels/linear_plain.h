// Products of quantized rows with tiles of weights, one number at a time.
#pragma once

#include "row_kernels.h"

namespace bita {
namespace {

// The value of an input of a block, for one output of the tile.
inline int32_t weight_value(const uint8_t* block, int bits, int64_t input, int64_t output) {
  if (bits == 8)
    return reinterpret_cast<const int8_t*>(block)[input / 4 * 64 + output * 4 + input % 4];
  const uint8_t both = block[input / 8 * 64 + output * 4 + input % 4];
  return input % 8 < 4 ? both & 15 : both >> 4;
}

// Each output adds its blocks in ascending order: scale * scale * (sum of products), then
// minimum * (scale * sum of the row's values).
inline void plain_tile(const Weights& weights, int64_t tile, const uint8_t* row, float* out) {
  const int64_t blocks = weights.blocks();
  const float *scales = row_scales(row, blocks), *sums = row_sums(row, blocks);
  Lanes total = Lanes::all(0.0f);
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t index = tile * blocks + block;
    const uint8_t* values = weights.values + index * weights.block_bytes();
    const int8_t* inputs = reinterpret_cast<const int8_t*>(row) + block * kBlock;
    int32_t products[16] = {};
    for (int64_t input = 0; input < kBlock; ++input)
      for (int64_t output = 0; output < 16; ++output)
        products[output] += inputs[input] * weight_value(values, weights.bits, input, output);
    const Lanes scale = Lanes::load_half(weights.scales + index * 16);
    total = Lanes::fused(Lanes::of_ints(products), scale * Lanes::all(scales[block]), total);
    if (weights.minima || weights.bits == 4) {
      const Lanes minimum = weights.minima ? Lanes::load_half(weights.minima + index * 16)
                                           : scale * Lanes::all(-8.0f);
      total = Lanes::fused(minimum, Lanes::all(sums[block]), total);
    }
  }
  const int64_t columns = std::min<int64_t>(16, weights.outputs - tile * 16);
  total.store_first(out, columns);
}

void linear(const LinearTask& task, int64_t first, int64_t last) {
  const int64_t stride = row_bytes(task.weights->blocks());
  for (int64_t tile = first; tile < last; ++tile)
    for (int64_t row = 0; row < task.num_rows; ++row)
      plain_tile(*task.weights, tile, task.rows + row * stride,
                 task.out + row * task.out_stride + (tile - first) * 16);
}

}  // namespace
}  // namespace bita
