// Tiles of weights in registers of 256 bits: eight outputs at a time.
//
// The including file defines `half_products`: the sums of products of a block, 8 lanes of int32.
#pragma once

#include "linear_rows.h"

namespace bita {
namespace {

// The values of half a tile's block: eight registers of 4 inputs a lane; 4 bits unsigned, 8 signed.
template <int Bits>
inline void load_half_block(const uint8_t* values, __m256i (&groups)[8]) {
  constexpr int kLines = Bits == 4 ? 4 : 8;
  for (int line = 0; line < kLines; ++line) {
    const __m256i both =
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + line * 64));
    if constexpr (Bits == 4) {
      const __m256i low = _mm256_set1_epi8(15);
      groups[2 * line] = _mm256_and_si256(both, low);
      groups[2 * line + 1] = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
    } else {
      groups[line] = both;
    }
  }
}

inline __m256i broadcast_four(const int8_t* values) {
  return _mm256_set1_epi32(four_values(values));
}

template <int Bits>
__m256i half_products(const __m256i (&groups)[8], const int8_t* inputs, int32_t count);

inline __m256 load_half_scales(const uint16_t* scales) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales)));
}

// R rows times the outputs [8 * half, 8 * half + 8) of a tile.
template <int R, int Bits, bool HasMinima>
inline void half_tile_rows(const TileTask& task, int half, float (&out)[R][16]) {
  constexpr bool kAddsMinima = HasMinima || Bits == 4;
  const int64_t stride = row_bytes(task.blocks);
  __m256 totals[R];
  for (int r = 0; r < R; ++r) totals[r] = _mm256_setzero_ps();
  for (int64_t block = 0; block < task.blocks; ++block) {
    __m256i groups[8];
    load_half_block<Bits>(task.values + block * (Bits == 4 ? 256 : 512) + half * 32, groups);
    const __m256 scale = load_half_scales(task.scales + block * kTile + half * 8);
    __m256 minimum;
    if constexpr (HasMinima)
      minimum = load_half_scales(task.minima + block * kTile + half * 8);
    else
      minimum = _mm256_mul_ps(scale, _mm256_set1_ps(-8.0f));
    for (int r = 0; r < R; ++r) {
      const uint8_t* row = task.rows + r * stride;
      const int8_t* inputs = reinterpret_cast<const int8_t*>(row) + block * kBlock;
      const __m256 sum = _mm256_cvtepi32_ps(
          half_products<Bits>(groups, inputs, row_counts(row, task.blocks)[block]));
      const __m256 scales =
          _mm256_mul_ps(scale, _mm256_set1_ps(row_scales(row, task.blocks)[block]));
      totals[r] = _mm256_fmadd_ps(sum, scales, totals[r]);
      if constexpr (kAddsMinima)
        totals[r] = _mm256_fmadd_ps(
            minimum, _mm256_set1_ps(row_sums(row, task.blocks)[block]), totals[r]);
    }
  }
  for (int r = 0; r < R; ++r) _mm256_storeu_ps(out[r] + half * 8, totals[r]);
}

template <int R, int Bits, bool HasMinima>
void tile_rows(const TileTask& task) {
  float out[R][16];
  for (int half = 0; half < 2; ++half) half_tile_rows<R, Bits, HasMinima>(task, half, out);
  for (int r = 0; r < R; ++r)
    std::memcpy(task.out + r * task.out_stride, out[r],
                static_cast<size_t>(task.columns) * sizeof(float));
}

}  // namespace
}  // namespace bita
