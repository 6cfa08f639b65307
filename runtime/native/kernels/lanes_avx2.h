// Sixteen floats in two AVX2 registers, with FMA and F16C.
#pragma once

#include <immintrin.h>

#include "numbers.h"

namespace bita {
namespace {

struct Lanes {
  __m256 lo, hi;

  static constexpr int kRegisters = 7;  // pairs of 16 registers; one is left for loaded values
  static constexpr int kMaxRows = 4;    // of a linear layer at a time

  static Lanes all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static Lanes load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static Lanes load_first(const float* p, int64_t count) {
    alignas(32) float all_of_them[16] = {};
    std::memcpy(all_of_them, p, static_cast<size_t>(count) * sizeof(float));
    return load(all_of_them);
  }
  static Lanes load_half(const uint16_t* p) {
    const __m128i* halves = reinterpret_cast<const __m128i*>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
  }
  // Sixteen int8 values.
  static Lanes load_bytes(const int8_t* p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
  }
  void store(float* p) const {
    _mm256_storeu_ps(p, lo);
    _mm256_storeu_ps(p + 8, hi);
  }
  void store_first(float* p, int64_t count) const {
    alignas(32) float all_of_them[16];
    store(all_of_them);
    std::memcpy(p, all_of_them, static_cast<size_t>(count) * sizeof(float));
  }
  void store_half(uint16_t* p) const {
    __m128i* halves = reinterpret_cast<__m128i*>(p);
    _mm_storeu_si128(halves, _mm256_cvtps_ph(lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    _mm_storeu_si128(halves + 1,
                     _mm256_cvtps_ph(hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  friend Lanes operator+(Lanes a, Lanes b) {
    return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
  }
  friend Lanes operator-(Lanes a, Lanes b) {
    return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
  }
  friend Lanes operator*(Lanes a, Lanes b) {
    return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
  }
  friend Lanes operator/(Lanes a, Lanes b) {
    return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
  }
  static Lanes fused(Lanes a, Lanes b, Lanes c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
  }
  // Assigned in parts: compilers keep arrays of pairs in memory if whole pairs are assigned.
  void clear() { lo = hi = _mm256_setzero_ps(); }
  void read(const float* p) {
    lo = _mm256_loadu_ps(p);
    hi = _mm256_loadu_ps(p + 8);
  }
  void add_product(const Lanes& a, const Lanes& b) {
    lo = _mm256_fmadd_ps(a.lo, b.lo, lo);
    hi = _mm256_fmadd_ps(a.hi, b.hi, hi);
  }
  static Lanes larger(Lanes a, Lanes b) {
    return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
  }
  static Lanes smaller(Lanes a, Lanes b) {
    return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
  }
  static Lanes rounded(Lanes a) {
    constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(a.lo, kNearest), _mm256_round_ps(a.hi, kNearest)};
  }
  static Lanes power_of_two(Lanes a) { return {power_of_two(a.lo), power_of_two(a.hi)}; }
  static Lanes within(Lanes a, Lanes b, int64_t begin, int64_t end) {
    return {within(a.lo, b.lo, 0, begin, end), within(a.hi, b.hi, 8, begin, end)};
  }
  static uint32_t largest_bits(Lanes a, Lanes b) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    const __m256i top =
        _mm256_max_epu32(_mm256_max_epu32(_mm256_and_si256(_mm256_castps_si256(a.lo), magnitude),
                                          _mm256_and_si256(_mm256_castps_si256(a.hi), magnitude)),
                         _mm256_max_epu32(_mm256_and_si256(_mm256_castps_si256(b.lo), magnitude),
                                          _mm256_and_si256(_mm256_castps_si256(b.hi), magnitude)));
    __m128i four = _mm_max_epu32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
    four = _mm_max_epu32(four, _mm_shuffle_epi32(four, 0x4e));
    four = _mm_max_epu32(four, _mm_shuffle_epi32(four, 0xb1));
    return static_cast<uint32_t>(_mm_cvtsi128_si32(four));
  }
  static int32_t store_int8(Lanes a, Lanes b, int8_t* p) {
    const __m256i q0 = _mm256_cvtps_epi32(a.lo), q1 = _mm256_cvtps_epi32(a.hi);
    const __m256i q2 = _mm256_cvtps_epi32(b.lo), q3 = _mm256_cvtps_epi32(b.hi);
    const __m256i words =
        _mm256_packs_epi16(_mm256_packs_epi32(q0, q1), _mm256_packs_epi32(q2, q3));
    const __m256i order =
        _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // packing works on each half separately
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permutevar8x32_epi32(words, order));
    return sum(_mm256_add_epi32(_mm256_add_epi32(q0, q1), _mm256_add_epi32(q2, q3)));
  }
  float sum() const {
    const __m256 eight = _mm256_add_ps(lo, hi);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_shuffle_ps(four, four, 1)));
  }
  float largest() const {
    const __m256 eight = _mm256_max_ps(lo, hi);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_shuffle_ps(four, four, 1)));
  }
  static bool any_not_below(Lanes a, float limit) {
    const __m256 bound = _mm256_set1_ps(limit);
    const __m256 above = _mm256_or_ps(_mm256_cmp_ps(a.lo, bound, _CMP_NLE_UQ),
                                      _mm256_cmp_ps(a.hi, bound, _CMP_NLE_UQ));
    return _mm256_movemask_ps(above) != 0;
  }

 private:
  static __m256 power_of_two(__m256 a) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
  }
  static __m256 within(__m256 a, __m256 b, int first, int64_t begin, int64_t end) {
    const __m256i lane =
        _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(first));
    const __m256i from = _mm256_set1_epi32(static_cast<int>(begin));
    const __m256i to = _mm256_set1_epi32(static_cast<int>(end));
    const __m256i is_in =
        _mm256_andnot_si256(_mm256_cmpgt_epi32(from, lane), _mm256_cmpgt_epi32(to, lane));
    return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(is_in));
  }
  static int32_t sum(__m256i eight) {
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
  }
};

}  // namespace
}  // namespace bita
