// The road of AVX2 with FMA and F16C, for x86 processors from 2013 on.
#include <cmath>

#include "lanes_avx2.h"
//
#include "attention_kernels.h"
#include "avx2_tiles.h"

namespace bita {
namespace {

// Pairs of products of unsigned and signed bytes are added in 16 bits. Eight pairs of 4-bit values
// fit there: 8 * 2 * 15 * 127 = 30480.
template <>
inline __m256i half_products<4>(const __m256i (&groups)[8], const int8_t* inputs, int32_t) {
  __m256i even = _mm256_maddubs_epi16(groups[0], broadcast_four(inputs));
  __m256i odd = _mm256_maddubs_epi16(groups[1], broadcast_four(inputs + 4));
  for (int group = 2; group < 8; group += 2) {
    even = _mm256_add_epi16(
        even, _mm256_maddubs_epi16(groups[group], broadcast_four(inputs + 4 * group)));
    odd = _mm256_add_epi16(
        odd, _mm256_maddubs_epi16(groups[group + 1], broadcast_four(inputs + 4 * group + 4)));
  }
  return _mm256_madd_epi16(_mm256_add_epi16(even, odd), _mm256_set1_epi16(1));
}

// Of 8-bit values one pair fits: 2 * 128 * 127 = 32512, with the weights' signs moved to the inputs,
// which are never -128.
template <>
inline __m256i half_products<8>(const __m256i (&groups)[8], const int8_t* inputs, int32_t) {
  __m256i sum = _mm256_setzero_si256();
  for (int group = 0; group < 8; ++group) {
    const __m256i signed_inputs =
        _mm256_sign_epi8(broadcast_four(inputs + 4 * group), groups[group]);
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(groups[group]), signed_inputs);
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  return sum;
}

}  // namespace

const Kernels kAvx2Kernels = {"avx2",     linear, add_norm, quantize,   gate, turn,
                              write_slot, attend, merge,    add_scaled, cap,  rank};

}  // namespace bita
