// Sixteen floats in four NEON registers, which every aarch64 processor has.
#pragma once

#include <arm_neon.h>

#include "numbers.h"

namespace bita {
namespace {

struct Lanes {
  float32x4_t a, b, c, d;

  static constexpr int kRegisters = 7;  // fours of 32 registers; one is left for loaded values
  static constexpr int kMaxRows = 8;    // of a linear layer at a time

  static Lanes all(float x) {
    const float32x4_t v = vdupq_n_f32(x);
    return {v, v, v, v};
  }
  static Lanes load(const float* p) {
    return {vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)};
  }
  static Lanes load_first(const float* p, int64_t count) {
    float all_of_them[16] = {};
    std::memcpy(all_of_them, p, static_cast<size_t>(count) * sizeof(float));
    return load(all_of_them);
  }
  static Lanes load_half(const uint16_t* p) {
    const float16x8_t low = vreinterpretq_f16_u16(vld1q_u16(p));
    const float16x8_t high = vreinterpretq_f16_u16(vld1q_u16(p + 8));
    return {vcvt_f32_f16(vget_low_f16(low)), vcvt_high_f32_f16(low),
            vcvt_f32_f16(vget_low_f16(high)), vcvt_high_f32_f16(high)};
  }
  // Sixteen int8 values.
  static Lanes load_bytes(const int8_t* p) {
    const int8x16_t bytes = vld1q_s8(p);
    const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_high_s8(bytes);
    return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_high_s16(low)),
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_high_s16(high))};
  }
  void store(float* p) const {
    vst1q_f32(p, a);
    vst1q_f32(p + 4, b);
    vst1q_f32(p + 8, c);
    vst1q_f32(p + 12, d);
  }
  void store_first(float* p, int64_t count) const {
    float all_of_them[16];
    store(all_of_them);
    std::memcpy(p, all_of_them, static_cast<size_t>(count) * sizeof(float));
  }
  void store_half(uint16_t* p) const {
    vst1q_u16(p, vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(a), b)));
    vst1q_u16(p + 8, vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(c), d)));
  }
  friend Lanes operator+(Lanes x, Lanes y) {
    return {vaddq_f32(x.a, y.a), vaddq_f32(x.b, y.b), vaddq_f32(x.c, y.c), vaddq_f32(x.d, y.d)};
  }
  friend Lanes operator-(Lanes x, Lanes y) {
    return {vsubq_f32(x.a, y.a), vsubq_f32(x.b, y.b), vsubq_f32(x.c, y.c), vsubq_f32(x.d, y.d)};
  }
  friend Lanes operator*(Lanes x, Lanes y) {
    return {vmulq_f32(x.a, y.a), vmulq_f32(x.b, y.b), vmulq_f32(x.c, y.c), vmulq_f32(x.d, y.d)};
  }
  friend Lanes operator/(Lanes x, Lanes y) {
    return {vdivq_f32(x.a, y.a), vdivq_f32(x.b, y.b), vdivq_f32(x.c, y.c), vdivq_f32(x.d, y.d)};
  }
  static Lanes fused(Lanes x, Lanes y, Lanes z) {
    return {vfmaq_f32(z.a, x.a, y.a), vfmaq_f32(z.b, x.b, y.b), vfmaq_f32(z.c, x.c, y.c),
            vfmaq_f32(z.d, x.d, y.d)};
  }
  // Assigned in parts, as in lanes_avx2.h: compilers keep arrays of four registers in memory if all
  // four are assigned at once.
  void clear() { a = b = c = d = vdupq_n_f32(0.0f); }
  void read(const float* p) {
    a = vld1q_f32(p);
    b = vld1q_f32(p + 4);
    c = vld1q_f32(p + 8);
    d = vld1q_f32(p + 12);
  }
  void add_product(const Lanes& x, const Lanes& y) {
    a = vfmaq_f32(a, x.a, y.a);
    b = vfmaq_f32(b, x.b, y.b);
    c = vfmaq_f32(c, x.c, y.c);
    d = vfmaq_f32(d, x.d, y.d);
  }
  // Not vmaxq_f32, which is NaN if either input is.
  static Lanes larger(Lanes x, Lanes y) {
    return {chosen(vcgtq_f32(x.a, y.a), x.a, y.a), chosen(vcgtq_f32(x.b, y.b), x.b, y.b),
            chosen(vcgtq_f32(x.c, y.c), x.c, y.c), chosen(vcgtq_f32(x.d, y.d), x.d, y.d)};
  }
  static Lanes smaller(Lanes x, Lanes y) {
    return {chosen(vcltq_f32(x.a, y.a), x.a, y.a), chosen(vcltq_f32(x.b, y.b), x.b, y.b),
            chosen(vcltq_f32(x.c, y.c), x.c, y.c), chosen(vcltq_f32(x.d, y.d), x.d, y.d)};
  }
  static Lanes rounded(Lanes x) {
    return {vrndnq_f32(x.a), vrndnq_f32(x.b), vrndnq_f32(x.c), vrndnq_f32(x.d)};
  }
  static Lanes power_of_two(Lanes x) {
    return {power_of_two(x.a), power_of_two(x.b), power_of_two(x.c), power_of_two(x.d)};
  }
  static Lanes within(Lanes x, Lanes y, int64_t begin, int64_t end) {
    return {within(x.a, y.a, 0, begin, end), within(x.b, y.b, 4, begin, end),
            within(x.c, y.c, 8, begin, end), within(x.d, y.d, 12, begin, end)};
  }
  static uint32_t largest_bits(Lanes x, Lanes y) {
    return vmaxvq_u32(vmaxq_u32(largest_magnitudes(x), largest_magnitudes(y)));
  }
  static int32_t store_int8(Lanes x, Lanes y, int8_t* p) {
    const int8x16_t first = to_bytes(x), second = to_bytes(y);
    vst1q_s8(p, first);
    vst1q_s8(p + 16, second);
    return vaddvq_s16(vpadalq_s8(vpaddlq_s8(first), second));
  }
  float sum() const {
    const float32x4_t four = vaddq_f32(vaddq_f32(a, c), vaddq_f32(b, d));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
  }
  float largest() const { return vmaxvq_f32(vmaxq_f32(vmaxq_f32(a, b), vmaxq_f32(c, d))); }
  static bool any_not_below(Lanes x, float limit) {
    const float32x4_t bound = vdupq_n_f32(limit);
    const uint32x4_t below = vandq_u32(vandq_u32(vcleq_f32(x.a, bound), vcleq_f32(x.b, bound)),
                                       vandq_u32(vcleq_f32(x.c, bound), vcleq_f32(x.d, bound)));
    return vminvq_u32(below) == 0;
  }

 private:
  static float32x4_t chosen(uint32x4_t is_first, float32x4_t x, float32x4_t y) {
    return vbslq_f32(is_first, x, y);
  }
  static float32x4_t power_of_two(float32x4_t x) {
    const int32x4_t exponent = vaddq_s32(vcvtnq_s32_f32(x), vdupq_n_s32(127));
    return vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23));
  }
  static float32x4_t within(float32x4_t x, float32x4_t y, int first, int64_t begin, int64_t end) {
    static constexpr int32_t kLanes[4] = {0, 1, 2, 3};
    const int32x4_t lane = vaddq_s32(vld1q_s32(kLanes), vdupq_n_s32(first));
    const int32x4_t from = vdupq_n_s32(static_cast<int32_t>(begin));
    const int32x4_t to = vdupq_n_s32(static_cast<int32_t>(end));
    return vbslq_f32(vandq_u32(vcgeq_s32(lane, from), vcltq_s32(lane, to)), x, y);
  }
  static uint32x4_t largest_magnitudes(Lanes x) {
    const uint32x4_t first = vmaxq_u32(magnitude(x.a), magnitude(x.b));
    return vmaxq_u32(first, vmaxq_u32(magnitude(x.c), magnitude(x.d)));
  }
  static uint32x4_t magnitude(float32x4_t x) {
    return vandq_u32(vreinterpretq_u32_f32(x), vdupq_n_u32(0x7fffffff));
  }
  // Rounded to the nearest, ties to even.
  static int8x16_t to_bytes(Lanes x) {
    const int16x8_t low = narrowed(vcvtnq_s32_f32(x.a), vcvtnq_s32_f32(x.b));
    const int16x8_t high = narrowed(vcvtnq_s32_f32(x.c), vcvtnq_s32_f32(x.d));
    return vmovn_high_s16(vmovn_s16(low), high);
  }
  static int16x8_t narrowed(int32x4_t x, int32x4_t y) { return vmovn_high_s32(vmovn_s32(x), y); }
};

}  // namespace
}  // namespace bita
