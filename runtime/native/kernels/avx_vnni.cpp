// The road of AVX2 with AVX-VNNI: laptops and small servers without AVX-512.
#include <cmath>

#include "lanes_avx2.h"
//
#include "attention_kernels.h"
#include "avx2_tiles.h"

namespace bita {
namespace {

template <>
inline __m256i half_products<4>(const __m256i (&groups)[8], const int8_t* inputs, int32_t) {
  __m256i even = _mm256_setzero_si256(), odd = _mm256_setzero_si256();
  for (int group = 0; group < 8; group += 2) {
    even = _mm256_dpbusd_avx_epi32(even, groups[group], broadcast_four(inputs + 4 * group));
    odd = _mm256_dpbusd_avx_epi32(odd, groups[group + 1], broadcast_four(inputs + 4 * group + 4));
  }
  return _mm256_add_epi32(even, odd);
}

// The instruction takes unsigned weights: 128 is added to them, and taken back by `count`, the sum
// of the inputs.
template <>
inline __m256i half_products<8>(const __m256i (&groups)[8], const int8_t* inputs, int32_t count) {
  const __m256i top_bit = _mm256_set1_epi8(-128);
  __m256i sum = _mm256_set1_epi32(-128 * count);
  for (int group = 0; group < 8; ++group)
    sum = _mm256_dpbusd_avx_epi32(sum, _mm256_xor_si256(groups[group], top_bit),
                                  broadcast_four(inputs + 4 * group));
  return sum;
}

}  // namespace

const Kernels kAvxVnniKernels = {"avx-vnni", linear, add_norm, quantize,   gate, turn,
                                 write_slot, attend, merge,    add_scaled, cap,  rank};

}  // namespace bita
