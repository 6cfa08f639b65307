// Products of quantized rows with tiles of weights, one number at a time, for any processor.
#pragma once

#include "row_kernels.h"

namespace bita {
namespace {

// A block of a tile, unpacked: the values of each input, for 16 outputs.
struct PlainBlock {
  int16_t values[kBlock][kTile];
};

inline void unpack(const uint8_t* block, int bits, PlainBlock& out) {
  for (int64_t input = 0; input < kBlock; ++input) {
    const bool is_high = bits == 4 && input % 8 >= 4;
    const uint8_t* line = block + (bits == 4 ? input / 8 : input / 4) * 64 + input % 4;
    for (int64_t output = 0; output < kTile; ++output) {
      const uint8_t byte = line[4 * output];
      const int16_t nibble = is_high ? byte >> 4 : byte & 15;
      out.values[input][output] = bits == 4 ? nibble : static_cast<int8_t>(byte);
    }
  }
}

inline Lanes plain_products(const PlainBlock& block, const int8_t* inputs) {
  int32_t products[kTile] = {};
  for (int64_t input = 0; input < kBlock; ++input)
    for (int64_t output = 0; output < kTile; ++output)
      products[output] += inputs[input] * block.values[input][output];
  return Lanes::of_ints(products);
}

// Each output adds its blocks in ascending order: first scale * scale * (sum of products), then
// minimum * (scale * sum of the row's values).
template <int R>
void plain_tile(const Weights& weights, int64_t tile, const uint8_t* rows, int64_t stride,
                float* out, int64_t out_stride) {
  const int64_t blocks = weights.blocks();
  Lanes totals[R];
  for (int r = 0; r < R; ++r) totals[r] = Lanes::all(0.0f);
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t index = tile * blocks + block;
    PlainBlock values;
    unpack(weights.values + index * weights.block_bytes(), weights.bits, values);
    const Lanes scale = Lanes::load_half(weights.scales + index * kTile);
    const Lanes minimum = weights.minima ? Lanes::load_half(weights.minima + index * kTile)
                                         : scale * Lanes::all(-8.0f);
    for (int r = 0; r < R; ++r) {
      const uint8_t* row = rows + r * stride;
      const Lanes products =
          plain_products(values, reinterpret_cast<const int8_t*>(row) + block * kBlock);
      const Lanes scales = scale * Lanes::all(row_scales(row, blocks)[block]);
      totals[r] = Lanes::fused(products, scales, totals[r]);
      if (weights.minima || weights.bits == 4)
        totals[r] = Lanes::fused(minimum, Lanes::all(row_sums(row, blocks)[block]), totals[r]);
    }
  }
  const int64_t columns = std::min<int64_t>(kTile, weights.outputs - tile * kTile);
  for (int r = 0; r < R; ++r) totals[r].store_first(out + r * out_stride, columns);
}

void linear(const LinearTask& task, int64_t first, int64_t last) {
  constexpr int64_t kRows = 4;
  const int64_t stride = row_bytes(task.weights->blocks());
  for (int64_t tile = first; tile < last; ++tile) {
    float* out = task.out + (tile - first) * kTile;
    int64_t row = 0;
    for (; row + kRows <= task.num_rows; row += kRows)
      plain_tile<kRows>(*task.weights, tile, task.rows + row * stride, stride,
                        out + row * task.out_stride, task.out_stride);
    for (; row < task.num_rows; ++row)
      plain_tile<1>(*task.weights, tile, task.rows + row * stride, stride,
                    out + row * task.out_stride, task.out_stride);
  }
}

}  // namespace
}  // namespace bita
