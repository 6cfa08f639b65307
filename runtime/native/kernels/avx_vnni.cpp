// Kernels for AVX2 with AVX-VNNI: laptops and small servers without AVX-512.
#include <cmath>

#include "lanes_avx2.h"
//
#include "attention_kernels.h"
#include "avx2_tiles.h"
#include "thin_kernels.h"

namespace bita {
namespace {

template <>
struct Products<4> {
  __m256i sum = _mm256_setzero_si256();

  void add(__m256i weights, __m256i inputs) { sum = _mm256_dpbusd_avx_epi32(sum, weights, inputs); }
  __m256i total(int32_t) const { return sum; }
};

// The instruction takes unsigned weights: 128 is added to them, and subtracted again by means of
// `count`, the sum of the inputs.
template <>
struct Products<8> {
  __m256i sum = _mm256_setzero_si256();

  static __m256i prepared(__m256i weights) {
    return _mm256_xor_si256(weights, _mm256_set1_epi8(-128));
  }
  void add(__m256i weights, __m256i inputs) { sum = _mm256_dpbusd_avx_epi32(sum, weights, inputs); }
  __m256i total(int32_t count) const {
    return _mm256_sub_epi32(sum, _mm256_set1_epi32(128 * count));
  }
};

}  // namespace

const Kernels kAvxVnniKernels = {"avx-vnni", linear,      add_norm, quantize, gate,      turn,
                                 write_key,  write_value, attend,   merge,    mean,      thin_in,
                                 thin_out,   cap,         rank,     weigh,    sum_blocks};

}  // namespace bita
