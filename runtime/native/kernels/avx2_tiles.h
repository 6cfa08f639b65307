// Tiles of weights in registers of 256 bits: eight outputs at a time.
//
// The including file defines `Products<Bits>`: a register of sums for each row, to which the
// products of a line of weights are added.
#pragma once

#include "linear_rows.h"

namespace bita {
namespace {

inline __m256i broadcast_four(const int8_t* values) {
  return _mm256_set1_epi32(four_values(values));
}

// Sums of products of a block: `add` takes 4 inputs of 8 outputs, `total` gives 8 lanes of int32.
// count: the sum of the row's values in the block.
template <int Bits>
struct Products;

// The half of a line with 8 outputs; 4-bit values are two groups of inputs.
template <int Bits, int R>
inline void add_line(const uint8_t* line, const int8_t* const (&inputs)[R], int64_t offset,
                     Products<Bits> (&products)[R]) {
  const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(line));
  if constexpr (Bits == 4) {
    const __m256i low = _mm256_set1_epi8(15);
    const __m256i first = _mm256_and_si256(both, low);
    const __m256i second = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
    for (int r = 0; r < R; ++r) {
      products[r].add(first, broadcast_four(inputs[r] + offset));
      products[r].add(second, broadcast_four(inputs[r] + offset + 4));
    }
  } else {
    const auto weights = Products<Bits>::prepared(both);
    for (int r = 0; r < R; ++r) products[r].add(weights, broadcast_four(inputs[r] + offset));
  }
}

inline __m256 load_half_scales(const uint16_t* scales) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales)));
}

// R rows times the outputs [8 * half, 8 * half + 8) of a tile.
template <int R, int Bits, bool HasMinima>
inline void half_tile_rows(const TileTask& task, int half, float (&out)[R][16]) {
  constexpr bool kAddsMinima = HasMinima || Bits == 4;
  constexpr int kLines = Bits == 4 ? 4 : 8, kInputs = 32 / kLines;
  const int64_t stride = row_bytes(task.blocks);
  __m256 totals[R];
  for (int r = 0; r < R; ++r) totals[r] = _mm256_setzero_ps();
  for (int64_t block = 0; block < task.blocks; ++block) {
    const uint8_t* values = task.values + block * 64 * kLines + half * 32;
    const int8_t* inputs[R];
    Products<Bits> products[R];
    for (int r = 0; r < R; ++r)
      inputs[r] = reinterpret_cast<const int8_t*>(task.rows + r * stride) + block * kBlock;
    for (int line = 0; line < kLines; ++line)
      add_line<Bits, R>(values + line * 64, inputs, line * kInputs, products);
    const __m256 scale = load_half_scales(task.scales + block * kTile + half * 8);
    __m256 minimum;
    if constexpr (HasMinima)
      minimum = load_half_scales(task.minima + block * kTile + half * 8);
    else
      minimum = _mm256_mul_ps(scale, _mm256_set1_ps(-8.0f));
    for (int r = 0; r < R; ++r) {
      const uint8_t* row = task.rows + r * stride;
      const __m256 sum = _mm256_cvtepi32_ps(
          products[r].total(Bits == 8 ? row_counts(row, task.blocks)[block] : 0));
      const __m256 scales =
          _mm256_mul_ps(scale, _mm256_set1_ps(row_scales(row, task.blocks)[block]));
      totals[r] = _mm256_fmadd_ps(sum, scales, totals[r]);
      if constexpr (kAddsMinima)
        totals[r] =
            _mm256_fmadd_ps(minimum, _mm256_set1_ps(row_sums(row, task.blocks)[block]), totals[r]);
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
