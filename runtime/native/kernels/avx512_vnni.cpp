// Kernels for AVX-512 with VNNI: a line of a block fills one register.
#include <cmath>

#include "lanes_avx512.h"
//
#include "attention_kernels.h"
#include "linear_rows.h"
#include "thin_kernels.h"

namespace bita {
namespace {

// Prefetch distance of the weights in bytes. Steps of one or two rows are limited by memory and are
// faster with weights in the L1 cache; with more rows, L2 is close enough.
constexpr int64_t kAhead = 8192, kFarAhead = 16384;
constexpr int kFewRows = 2;

template <int R>
inline void fetch(const uint8_t* line) {
  if constexpr (R <= kFewRows)
    _mm_prefetch(reinterpret_cast<const char*>(line + kAhead), _MM_HINT_T0);
  else
    _mm_prefetch(reinterpret_cast<const char*>(line + kFarAhead), _MM_HINT_T1);
}

// The values of a block in eight registers, each lane with 4 unsigned inputs. 128 is added to 8-bit
// values, which the start value of `products` subtracts again.
template <int Bits, int R>
inline void load_block(const uint8_t* values, __m512i (&groups)[8]) {
  constexpr int kLines = Bits == 4 ? 4 : 8;
  for (int line = 0; line < kLines; ++line) {
    fetch<R>(values + line * 64);
    const __m512i both = _mm512_loadu_si512(values + line * 64);
    if constexpr (Bits == 4) {
      const __m512i low = _mm512_set1_epi8(15);
      groups[2 * line] = _mm512_and_si512(both, low);
      groups[2 * line + 1] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
    } else {
      groups[line] = _mm512_xor_si512(both, _mm512_set1_epi8(-128));
    }
  }
}

inline __m512i products(const __m512i (&groups)[8], const int8_t* inputs, int32_t start) {
  __m512i even = _mm512_set1_epi32(start), odd = _mm512_setzero_si512();
  for (int group = 0; group < 8; group += 2) {
    even = _mm512_dpbusd_epi32(even, groups[group],
                               _mm512_set1_epi32(four_values(inputs + 4 * group)));
    odd = _mm512_dpbusd_epi32(odd, groups[group + 1],
                              _mm512_set1_epi32(four_values(inputs + 4 * group + 4)));
  }
  return _mm512_add_epi32(even, odd);
}

template <int R, int Bits, bool HasMinima>
void tile_rows(const TileTask& task) {
  constexpr bool kAddsMinima = HasMinima || Bits == 4;
  const int64_t stride = row_bytes(task.blocks);
  Lanes totals[R];
  for (int r = 0; r < R; ++r) totals[r] = Lanes::all(0.0f);
  for (int64_t block = 0; block < task.blocks; ++block) {
    __m512i groups[8];
    load_block<Bits, R>(task.values + block * (Bits == 4 ? 256 : 512), groups);
    const Lanes scale = Lanes::load_half(task.scales + block * kTile);
    Lanes minimum;
    if constexpr (HasMinima)
      minimum = Lanes::load_half(task.minima + block * kTile);
    else
      minimum = scale * Lanes::all(-8.0f);
    for (int r = 0; r < R; ++r) {
      const uint8_t* row = task.rows + r * stride;
      const int8_t* inputs = reinterpret_cast<const int8_t*>(row) + block * kBlock;
      const int32_t start = Bits == 8 ? -128 * row_counts(row, task.blocks)[block] : 0;
      const Lanes sum{_mm512_cvtepi32_ps(products(groups, inputs, start))};
      const Lanes scales = scale * Lanes::all(row_scales(row, task.blocks)[block]);
      totals[r] = Lanes::fused(sum, scales, totals[r]);
      if constexpr (kAddsMinima)
        totals[r] = Lanes::fused(minimum, Lanes::all(row_sums(row, task.blocks)[block]), totals[r]);
    }
  }
  for (int r = 0; r < R; ++r) totals[r].store_first(task.out + r * task.out_stride, task.columns);
}

}  // namespace

const Kernels kAvx512VnniKernels = {
    "avx512-vnni", linear, add_norm, quantize, gate, turn, write_key, write_value, attend,
    merge,         mean,   thin_in,  thin_out, cap,  rank, weigh,     sum_blocks};

}  // namespace bita
