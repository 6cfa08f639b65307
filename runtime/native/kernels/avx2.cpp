// Kernels for AVX2 with FMA and F16C: x86 processors since 2013.
#include <cmath>

#include "lanes_avx2.h"
//
#include "attention_kernels.h"
#include "avx2_tiles.h"
#include "thin_kernels.h"

namespace bita {
namespace {

// Pairs of products of unsigned and signed bytes are added in 16 bits. Eight pairs of 4-bit values
// fit: 8 * 2 * 15 * 127 = 30480.
template <>
struct Products<4> {
  __m256i sum = _mm256_setzero_si256();

  void add(__m256i weights, __m256i inputs) {
    sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(weights, inputs));
  }
  __m256i total(int32_t) const { return _mm256_madd_epi16(sum, _mm256_set1_epi16(1)); }
};

// One pair of 8-bit values fits in 16 bits: 2 * 128 * 127 = 32512, with the signs of the weights
// moved to the inputs, which are never -128.
template <>
struct Products<8> {
  struct Weights {
    __m256i magnitudes, signs;
  };
  __m256i sum = _mm256_setzero_si256();

  static Weights prepared(__m256i weights) { return {_mm256_abs_epi8(weights), weights}; }
  void add(Weights weights, __m256i inputs) {
    const __m256i pairs =
        _mm256_maddubs_epi16(weights.magnitudes, _mm256_sign_epi8(inputs, weights.signs));
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  __m256i total(int32_t) const { return sum; }
};

}  // namespace

const Kernels kAvx2Kernels = {"avx2",    linear,      add_norm, quantize, gate,      turn,
                              write_key, write_value, attend,   merge,    mean,      thin_in,
                              thin_out,  cap,         rank,     weigh,    sum_blocks};

}  // namespace bita
