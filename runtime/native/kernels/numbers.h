// Numbers for which C++17 has no type: float16, and the bits of floats.
#pragma once

#include <cstdint>
#include <cstring>

namespace bita {
namespace {

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Exact. Processors do this in one instruction, with the same result for NaN.
inline float from_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t exponent = (half >> 10) & 31;
  const uint32_t digits = half & 0x3ff;
  if (exponent == 31) {
    const uint32_t quiet = digits ? 0x400000u : 0;
    return float_of(sign | 0x7f800000u | quiet | digits << 13);
  }
  if (exponent) return float_of(sign | (exponent + 112) << 23 | digits << 13);
  const float tiny = static_cast<float>(digits) * 5.9604644775390625e-8f;  // 2^-24
  return float_of(sign | bits_of(tiny));
}

// Round to nearest, ties to even; numbers from 65520 up become infinite.
inline uint16_t to_half(float value) {
  const uint32_t bits = bits_of(value);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u)  // NaN keeps its upper digits
    return static_cast<uint16_t>(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
  if (magnitude >= 0x477ff000u) return sign | 0x7c00;  // 65520
  if (magnitude < 0x38800000u) {                       // below 2^-14: a multiple of 2^-24
    const float shifted = float_of(magnitude) + 0.5f;  // its last digit is 2^-24
    return static_cast<uint16_t>(sign | (bits_of(shifted) - 0x3f000000u));
  }
  const uint32_t odd = magnitude >> 13 & 1;
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfff + odd) >> 13));
}

}  // namespace
}  // namespace bita
