// Sixteen floats in one AVX-512 register.
#pragma once

#include <immintrin.h>

#include "numbers.h"

namespace bita {
namespace {

struct Lanes {
  __m512 v;

  static constexpr int kRegisters = 28;  // out of 32; the others are left for loaded values
  static constexpr int kMaxRows = 16;    // of a linear layer at a time

  static Lanes all(float x) { return {_mm512_set1_ps(x)}; }
  static Lanes load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Lanes load_first(const float* p, int64_t count) {
    return {_mm512_maskz_loadu_ps(first(count), p)};
  }
  static Lanes load_half(const uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  // Sixteen int8 values.
  static Lanes load_bytes(const int8_t* p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))};
  }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store_first(float* p, int64_t count) const { _mm512_mask_storeu_ps(p, first(count), v); }
  void store_half(uint16_t* p) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  friend Lanes operator+(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend Lanes operator-(Lanes a, Lanes b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend Lanes operator*(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }
  friend Lanes operator/(Lanes a, Lanes b) { return {_mm512_div_ps(a.v, b.v)}; }
  static Lanes fused(Lanes a, Lanes b, Lanes c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  void clear() { v = _mm512_setzero_ps(); }
  void read(const float* p) { v = _mm512_loadu_ps(p); }
  void add_product(const Lanes& a, const Lanes& b) { v = _mm512_fmadd_ps(a.v, b.v, v); }
  static Lanes larger(Lanes a, Lanes b) { return {_mm512_max_ps(a.v, b.v)}; }
  static Lanes smaller(Lanes a, Lanes b) { return {_mm512_min_ps(a.v, b.v)}; }
  static Lanes rounded(Lanes a) {
    return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  }
  static Lanes power_of_two(Lanes a) {
    const __m512i exponent = _mm512_add_epi32(_mm512_cvtps_epi32(a.v), _mm512_set1_epi32(127));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23))};
  }
  static Lanes within(Lanes a, Lanes b, int64_t begin, int64_t end) {
    const __mmask16 is_in = static_cast<__mmask16>(first(end) & ~first(begin));
    return {_mm512_mask_blend_ps(is_in, b.v, a.v)};
  }
  static uint32_t largest_bits(Lanes a, Lanes b) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    return _mm512_reduce_max_epu32(
        _mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(a.v), magnitude),
                         _mm512_and_si512(_mm512_castps_si512(b.v), magnitude)));
  }
  static int32_t store_int8(Lanes a, Lanes b, int8_t* p) {
    const __m512i q0 = _mm512_cvtps_epi32(a.v), q1 = _mm512_cvtps_epi32(b.v);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(q0));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 16), _mm512_cvtepi32_epi8(q1));
    return _mm512_reduce_add_epi32(_mm512_add_epi32(q0, q1));
  }
  float sum() const {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_shuffle_ps(four, four, 1)));
  }
  float largest() const { return _mm512_reduce_max_ps(v); }
  static bool any_not_below(Lanes a, float limit) {
    return _mm512_cmp_ps_mask(a.v, _mm512_set1_ps(limit), _CMP_NLE_UQ) != 0;
  }

 private:
  static __mmask16 first(int64_t count) {
    if (count <= 0) return 0;
    return count >= 16 ? 0xffff : static_cast<__mmask16>((1u << count) - 1);
  }
};

}  // namespace
}  // namespace bita
