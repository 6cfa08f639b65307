// Tiles of weights in 128-bit registers: each holds four outputs, a quarter of a line.
//
// One or two rows compute a tile's 16 outputs in one pass over its blocks, three or four rows
// compute eight outputs at a time, and more rows four: their sums fit in registers, and a block's
// values are unpacked once for all of them. Each ISA defines `part_rows`; ISAs that define
// `products`, the sums of one row, can use `dot_rows` for it.
#pragma once

#include "linear_rows.h"

namespace bita {
namespace {

// The values of four outputs in a block: register g has the inputs 4 * g to 4 * g + 3 of each.
struct Quarter {
  int8x16_t groups[8];
};

// values: the first byte of the quarter in the block.
template <int Bits>
inline Quarter load_quarter(const uint8_t* values) {
  Quarter quarter;
  if constexpr (Bits == 4) {
    for (int line = 0; line < 4; ++line) {
      const uint8x16_t both = vld1q_u8(values + line * 64);
      quarter.groups[2 * line] = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
      quarter.groups[2 * line + 1] = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
    }
  } else {
    for (int line = 0; line < 8; ++line)
      quarter.groups[line] = vreinterpretq_s8_u8(vld1q_u8(values + line * 64));
  }
  return quarter;
}

inline float32x4_t load_four_halves(const uint16_t* halves) {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(halves)));
}

// Scales and minima of four outputs in a block.
template <int Bits, bool HasMinima>
struct Scaling {
  static constexpr bool kAddsMinima = HasMinima || Bits == 4;

  float32x4_t scale, minimum;

  Scaling(const TileTask& task, int64_t output) {
    scale = load_four_halves(task.scales + output);
    if constexpr (HasMinima)
      minimum = load_four_halves(task.minima + output);
    else
      minimum = vmulq_n_f32(scale, -8.0f);
  }
};

// Sums of products of a block of one row with four outputs.
template <int Bits>
inline int32x4_t products(const Quarter& quarter, const int8_t* inputs);

// R rows times Q quarters of a tile, starting at quarter `first`.
template <int R, int Bits, bool HasMinima, int Q>
void part_rows(const TileTask& task, int first);

inline const int8_t* block_of_row(const TileTask& task, int row, int64_t block) {
  const uint8_t* values = task.rows + row * row_bytes(task.blocks);
  return reinterpret_cast<const int8_t*>(values) + block * kBlock;
}

// Returns total + scale * scale * products, plus minimum * (scale * sum of the row's values).
template <int Bits, bool HasMinima>
inline float32x4_t add_products(float32x4_t total, int32x4_t sums,
                                const Scaling<Bits, HasMinima>& scaling, const TileTask& task,
                                int row, int64_t block) {
  const uint8_t* values = task.rows + row * row_bytes(task.blocks);
  const float32x4_t scales = vmulq_n_f32(scaling.scale, row_scales(values, task.blocks)[block]);
  total = vfmaq_f32(total, vcvtq_f32_s32(sums), scales);
  if constexpr (Scaling<Bits, HasMinima>::kAddsMinima)
    total = vfmaq_n_f32(total, scaling.minimum, row_sums(values, task.blocks)[block]);
  return total;
}

inline void store_four(float32x4_t outputs, const TileTask& task, int row, int quarter) {
  const int64_t count = std::min<int64_t>(4, task.columns - 4 * quarter);
  float* out = task.out + row * task.out_stride + 4 * quarter;
  if (count == 4)
    vst1q_f32(out, outputs);
  else if (count > 0)
    std::memcpy(out, &outputs, static_cast<size_t>(count) * sizeof(float));
}

// The pass that starts at quarter `first` prefetches its share of the next tile, a part of it with
// each block.
template <int Bits, int Q>
inline void fetch_ahead(const TileTask& task, int first, int64_t block) {
  constexpr int kPart = 16 * Bits * Q;
  const uint8_t* next = task.values + task.blocks * (64 * Bits);
  const uint8_t* part = next + first * task.blocks * (16 * Bits) + block * kPart;
  for (int line = 0; line < kPart; line += 64) __builtin_prefetch(part + line);
}

// Without the pragmas g++ keeps the totals in memory.
template <int R, int Bits, bool HasMinima, int Q>
void dot_rows(const TileTask& task, int first) {
  float32x4_t totals[R][Q];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) totals[r][q] = vdupq_n_f32(0.0f);
  for (int64_t block = 0; block < task.blocks; ++block) {
    const uint8_t* values = task.values + block * (64 * Bits);
    if constexpr (Q < 4) fetch_ahead<Bits, Q>(task, first, block);
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) {
      const Quarter quarter = load_quarter<Bits>(values + 16 * (first + q));
      const Scaling<Bits, HasMinima> scaling(task, block * kTile + 4 * (first + q));
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const int32x4_t sums = products<Bits>(quarter, block_of_row(task, r, block));
        totals[r][q] = add_products(totals[r][q], sums, scaling, task, r, block);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) store_four(totals[r][q], task, r, first + q);
}

template <int R, int Bits, bool HasMinima>
void tile_rows(const TileTask& task) {
  constexpr int kQuarters = R <= 2 ? 4 : R <= 4 ? 2 : 1;
  for (int first = 0; first < 4; first += kQuarters)
    part_rows<R, Bits, HasMinima, kQuarters>(task, first);
}

}  // namespace
}  // namespace bita
