// Kernels for NEON with i8mm, which multiplies two rows at a time: processors such as Cortex-X2,
// Neoverse V1 and later.
#include <cmath>

#include "lanes_neon.h"
//
#include "attention_kernels.h"
#include "neon_dot.h"
#include "neon_tiles.h"
#include "thin_kernels.h"

namespace bita {
namespace {

// The values of four outputs in a block: register k has the inputs 8 * k to 8 * k + 7 of two
// outputs.
struct Pairs {
  int8x16_t first[4], second[4];

  explicit Pairs(const Quarter& quarter) {
    for (int k = 0; k < 4; ++k) {
      const int32x4_t left = vreinterpretq_s32_s8(quarter.groups[2 * k]);
      const int32x4_t right = vreinterpretq_s32_s8(quarter.groups[2 * k + 1]);
      first[k] = vreinterpretq_s8_s32(vzip1q_s32(left, right));
      second[k] = vreinterpretq_s8_s32(vzip2q_s32(left, right));
    }
  }
};

// Two rows of the activations. Registers hold outputs 0 and 1 of the first row, then those of the
// second.
struct TwoRows {
  const uint8_t* rows[2];
  int64_t blocks;

  TwoRows(const TileTask& task, int row) : blocks(task.blocks) {
    rows[0] = task.rows + row * row_bytes(blocks);
    rows[1] = rows[0] + row_bytes(blocks);
  }
  // Inputs 8 * k to 8 * k + 7 of a block, of both rows.
  int8x16_t inputs(int64_t block, int k) const {
    const int64_t at = block * kBlock + 8 * k;
    return vcombine_s8(vld1_s8(reinterpret_cast<const int8_t*>(rows[0]) + at),
                       vld1_s8(reinterpret_cast<const int8_t*>(rows[1]) + at));
  }
  float32x4_t scales(int64_t block) const {
    return both(row_scales(rows[0], blocks)[block], row_scales(rows[1], blocks)[block]);
  }
  float32x4_t sums(int64_t block) const {
    return both(row_sums(rows[0], blocks)[block], row_sums(rows[1], blocks)[block]);
  }
  static float32x4_t both(float x, float y) { return vcombine_f32(vdup_n_f32(x), vdup_n_f32(y)); }
};

// Totals of four outputs for two rows.
struct Totals {
  float32x4_t first, second;

  template <int Bits, bool HasMinima>
  void add(const Pairs& weights, const Scaling<Bits, HasMinima>& scaling, const TwoRows& rows,
           int64_t block) {
    int32x4_t sums[2] = {vdupq_n_s32(0), vdupq_n_s32(0)};
    for (int k = 0; k < 4; ++k) {
      const int8x16_t inputs = rows.inputs(block, k);
      sums[0] = vmmlaq_s32(sums[0], inputs, weights.first[k]);
      sums[1] = vmmlaq_s32(sums[1], inputs, weights.second[k]);
    }
    const float32x4_t scales = rows.scales(block);
    first = vfmaq_f32(first, vcvtq_f32_s32(sums[0]), vmulq_f32(low_twice(scaling.scale), scales));
    second =
        vfmaq_f32(second, vcvtq_f32_s32(sums[1]), vmulq_f32(high_twice(scaling.scale), scales));
    if constexpr (Scaling<Bits, HasMinima>::kAddsMinima) {
      const float32x4_t values = rows.sums(block);
      first = vfmaq_f32(first, low_twice(scaling.minimum), values);
      second = vfmaq_f32(second, high_twice(scaling.minimum), values);
    }
  }
  float32x4_t of_row(int row) const {
    return row == 0 ? vcombine_f32(vget_low_f32(first), vget_low_f32(second))
                    : vcombine_f32(vget_high_f32(first), vget_high_f32(second));
  }

 private:
  static float32x4_t low_twice(float32x4_t x) {
    return vcombine_f32(vget_low_f32(x), vget_low_f32(x));
  }
  static float32x4_t high_twice(float32x4_t x) {
    return vcombine_f32(vget_high_f32(x), vget_high_f32(x));
  }
};

// Multiplies rows in pairs, and the last one alone if their number is odd.
template <int R, int Bits, bool HasMinima, int Q>
void pair_rows(const TileTask& task, int first) {
  constexpr int kPairs = R / 2, kAlone = R % 2;
  Totals pairs[kPairs][Q];
  float32x4_t alone[Q];
  for (int q = 0; q < Q; ++q) {
    alone[q] = vdupq_n_f32(0.0f);
    for (int p = 0; p < kPairs; ++p) pairs[p][q] = {vdupq_n_f32(0.0f), vdupq_n_f32(0.0f)};
  }
  for (int64_t block = 0; block < task.blocks; ++block) {
    if constexpr (Q < 4) fetch_ahead<Bits, Q>(task, first, block);
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) {
      const Quarter quarter =
          load_quarter<Bits>(task.values + block * (64 * Bits) + 16 * (first + q));
      const Scaling<Bits, HasMinima> scaling(task, block * kTile + 4 * (first + q));
      if constexpr (kAlone != 0)
        alone[q] = add_products(alone[q], products<Bits>(quarter, block_of_row(task, R - 1, block)),
                                scaling, task, R - 1, block);
      const Pairs weights(quarter);
#pragma GCC unroll 4
      for (int p = 0; p < kPairs; ++p)
        pairs[p][q].add(weights, scaling, TwoRows(task, 2 * p), block);
    }
  }
  for (int q = 0; q < Q; ++q) {
    for (int r = 0; r < 2 * kPairs; ++r)
      store_four(pairs[r / 2][q].of_row(r % 2), task, r, first + q);
    if constexpr (kAlone != 0) store_four(alone[q], task, R - 1, first + q);
  }
}

template <int R, int Bits, bool HasMinima, int Q>
void part_rows(const TileTask& task, int first) {
  if constexpr (R == 1)
    dot_rows<R, Bits, HasMinima, Q>(task, first);
  else
    pair_rows<R, Bits, HasMinima, Q>(task, first);
}

}  // namespace

const Kernels kNeonI8mmKernels = {"neon-i8mm", linear,      add_norm, quantize, gate,      turn,
                                  write_key,   write_value, attend,   merge,    mean,      thin_in,
                                  thin_out,    cap,         rank,     weigh,    sum_blocks};

}  // namespace bita
