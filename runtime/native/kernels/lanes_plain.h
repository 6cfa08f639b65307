// Sixteen floats in portable C++, which define the results of every other ISA.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "numbers.h"

namespace bita {
namespace {

struct Lanes {
  float v[16];

  static constexpr int kRegisters = 8;  // that may be in use at a time

  template <class F>
  static Lanes make(F&& lane) {
    Lanes r;
    for (int i = 0; i < 16; ++i) r.v[i] = lane(i);
    return r;
  }
  static Lanes all(float x) {
    return make([&](int) { return x; });
  }
  static Lanes load(const float* p) {
    return make([&](int i) { return p[i]; });
  }
  // The first `count` numbers, followed by zeros.
  static Lanes load_first(const float* p, int64_t count) {
    return make([&](int i) { return i < count ? p[i] : 0.0f; });
  }
  static Lanes load_half(const uint16_t* p) {
    return make([&](int i) { return from_half(p[i]); });
  }
  // Sixteen int8 values.
  static Lanes load_bytes(const int8_t* p) {
    return make([&](int i) { return static_cast<float>(p[i]); });
  }
  static Lanes of_ints(const int32_t* p) {
    return make([&](int i) { return static_cast<float>(p[i]); });
  }
  void store(float* p) const { std::copy(v, v + 16, p); }
  void store_first(float* p, int64_t count) const { std::copy(v, v + count, p); }
  void store_half(uint16_t* p) const {
    for (int i = 0; i < 16; ++i) p[i] = to_half(v[i]);
  }
  friend Lanes operator+(Lanes a, Lanes b) {
    return make([&](int i) { return a.v[i] + b.v[i]; });
  }
  friend Lanes operator-(Lanes a, Lanes b) {
    return make([&](int i) { return a.v[i] - b.v[i]; });
  }
  friend Lanes operator*(Lanes a, Lanes b) {
    return make([&](int i) { return a.v[i] * b.v[i]; });
  }
  friend Lanes operator/(Lanes a, Lanes b) {
    return make([&](int i) { return a.v[i] / b.v[i]; });
  }
  // a * b + c, rounded once
  static Lanes fused(Lanes a, Lanes b, Lanes c) {
    return make([&](int i) { return std::fma(a.v[i], b.v[i], c.v[i]); });
  }
  void clear() { *this = all(0.0f); }
  void read(const float* p) { *this = load(p); }
  // Adds a * b, rounded once.
  void add_product(const Lanes& a, const Lanes& b) { *this = fused(a, b, *this); }
  // The larger of the two; b if either is NaN.
  static Lanes larger(Lanes a, Lanes b) {
    return make([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  static Lanes smaller(Lanes a, Lanes b) {
    return make([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
  }
  // Rounds to the nearest integer, ties to even.
  static Lanes rounded(Lanes a) {
    return make([&](int i) { return std::nearbyint(a.v[i]); });
  }
  // 2 to the power of an integer from -126 to 127; any value for NaN.
  static Lanes power_of_two(Lanes a) {
    return make([&](int i) {
      const bool is_number = a.v[i] >= -126.0f && a.v[i] <= 127.0f;
      const int32_t exponent = is_number ? static_cast<int32_t>(a.v[i]) + 127 : 127;
      return float_of(static_cast<uint32_t>(exponent) << 23);
    });
  }
  // a in the lanes [begin, end), b in the others.
  static Lanes within(Lanes a, Lanes b, int64_t begin, int64_t end) {
    return make([&](int i) { return i >= begin && i < end ? a.v[i] : b.v[i]; });
  }
  // The bits of the largest magnitude in both; infinity and NaN compare above all numbers.
  static uint32_t largest_bits(Lanes a, Lanes b) {
    uint32_t top = 0;
    for (int i = 0; i < 16; ++i)
      top = std::max({top, bits_of(a.v[i]) & 0x7fffffffu, bits_of(b.v[i]) & 0x7fffffffu});
    return top;
  }
  // Rounds to int8, stores all 32 and returns their sum. Magnitudes are below 127.5.
  static int32_t store_int8(Lanes a, Lanes b, int8_t* p) {
    int32_t sum = 0;
    for (int i = 0; i < 32; ++i) {
      const float value = i < 16 ? a.v[i] : b.v[i - 16];
      p[i] = static_cast<int8_t>(static_cast<int32_t>(std::nearbyint(value)));
      sum += p[i];
    }
    return sum;
  }
  // Adds lane i and lane i + 8, then lane i and lane i + 4 of the result, and so on.
  float sum() const {
    float s[16];
    store(s);
    for (int half = 8; half; half /= 2)
      for (int i = 0; i < half; ++i) s[i] += s[i + half];
    return s[0];
  }
  // No lane may be NaN.
  float largest() const { return *std::max_element(v, v + 16); }
  // Whether a lane is above the limit or NaN.
  static bool any_not_below(Lanes a, float limit) {
    return std::any_of(a.v, a.v + 16, [&](float x) { return !(x <= limit); });
  }
};

}  // namespace
}  // namespace bita
