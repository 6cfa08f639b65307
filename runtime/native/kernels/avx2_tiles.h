// Tiles of weights in 256-bit registers: each holds eight outputs, half a line.
//
// Up to three rows compute a tile's 16 outputs in one pass over its blocks; four rows compute eight
// outputs at a time, so that their sums stay in registers. Hardware prefetching comes too late:
// without the prefetches here, AMD Zen 3 takes 1.15 times as long for a step of one row, and 1.3
// times as long for two to four rows.
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

// Adds the half of a line with 8 outputs. 4-bit values are two groups of inputs.
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

// Scales and minima of eight outputs in a block.
template <int Bits, bool HasMinima>
struct Scaling {
  static constexpr bool kAddsMinima = HasMinima || Bits == 4;

  __m256 scale, minimum;

  Scaling(const TileTask& task, int64_t output) {
    scale = load_half_scales(task.scales + output);
    if constexpr (HasMinima)
      minimum = load_half_scales(task.minima + output);
    else
      minimum = _mm256_mul_ps(scale, _mm256_set1_ps(-8.0f));
  }
};

// Returns total + scale * scale * products, plus minimum * (scale * sum of the row's values).
template <int Bits, bool HasMinima>
inline __m256 add_products(__m256 total, const Products<Bits>& products,
                           const Scaling<Bits, HasMinima>& scaling, const TileTask& task, int row,
                           int64_t block) {
  const uint8_t* values = task.rows + row * row_bytes(task.blocks);
  const int32_t count = Bits == 8 ? row_counts(values, task.blocks)[block] : 0;
  const __m256 scales =
      _mm256_mul_ps(scaling.scale, _mm256_set1_ps(row_scales(values, task.blocks)[block]));
  total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(products.total(count)), scales, total);
  if constexpr (Scaling<Bits, HasMinima>::kAddsMinima)
    total = _mm256_fmadd_ps(scaling.minimum, _mm256_set1_ps(row_sums(values, task.blocks)[block]),
                            total);
  return total;
}

inline void fetch(const uint8_t* line) {
  _mm_prefetch(reinterpret_cast<const char*>(line), _MM_HINT_T0);
}

// A single pass prefetches 8 kB ahead. Each of two passes prefetches its half of the next tile, a
// part of it with each block.
template <int Bits, int Halves>
inline void fetch_ahead(const TileTask& task, int first, int64_t block) {
  constexpr int kPart = 32 * Bits * Halves;
  const uint8_t* part = task.values + block * kPart;
  part += Halves == 2 ? 8192 : task.blocks * (64 * Bits) + first * task.blocks * kPart;
  for (int line = 0; line < kPart; line += 64) fetch(part + line);
}

// R rows times the outputs [8 * first, 8 * (first + Halves)) of a tile.
template <int R, int Bits, bool HasMinima, int Halves>
inline void part_rows(const TileTask& task, int first, float (&out)[R][16]) {
  constexpr int kLines = Bits == 4 ? 4 : 8, kInputs = 32 / kLines;
  __m256 totals[Halves][R];
  for (int h = 0; h < Halves; ++h)
    for (int r = 0; r < R; ++r) totals[h][r] = _mm256_setzero_ps();
  for (int64_t block = 0; block < task.blocks; ++block) {
    const int8_t* inputs[R];
    for (int r = 0; r < R; ++r)
      inputs[r] =
          reinterpret_cast<const int8_t*>(task.rows + r * row_bytes(task.blocks)) + block * kBlock;
    fetch_ahead<Bits, Halves>(task, first, block);
#pragma GCC unroll 2
    for (int h = 0; h < Halves; ++h) {
      const int half = first + h;
      const uint8_t* values = task.values + block * (64 * kLines) + half * 32;
      Products<Bits> products[R];
      for (int line = 0; line < kLines; ++line)
        add_line<Bits, R>(values + line * 64, inputs, line * kInputs, products);
      const Scaling<Bits, HasMinima> scaling(task, block * kTile + half * 8);
      for (int r = 0; r < R; ++r)
        totals[h][r] = add_products(totals[h][r], products[r], scaling, task, r, block);
    }
  }
  for (int h = 0; h < Halves; ++h)
    for (int r = 0; r < R; ++r) _mm256_storeu_ps(out[r] + (first + h) * 8, totals[h][r]);
}

template <int R, int Bits, bool HasMinima>
void tile_rows(const TileTask& task) {
  constexpr int kHalves = R <= 3 ? 2 : 1;
  float out[R][16];
  for (int first = 0; first < 2; first += kHalves)
    part_rows<R, Bits, HasMinima, kHalves>(task, first, out);
  for (int r = 0; r < R; ++r)
    std::memcpy(task.out + r * task.out_stride, out[r],
                static_cast<size_t>(task.columns) * sizeof(float));
}

}  // namespace
}  // namespace bita
