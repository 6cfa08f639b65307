// Detects what the processor and its operating system support by asking them directly: the C++
// compiler of the package ziglang answers every __builtin_cpu_supports with false, and g++ 12 does
// not know "avxvnni".
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace bita {
namespace {

struct Processor {
  bool avx2 = false;         // with FMA and F16C
  bool avx_vnni = false;     // with 256-bit registers
  bool avx512_vnni = false;  // with F, BW, VL, DQ
  bool neon_dotprod = false;
  bool neon_i8mm = false;  // with dot product
};

#if defined(__x86_64__)
inline bool has(unsigned word, int bit) { return (word >> bit & 1) != 0; }

// The registers that the operating system saves, as a bit mask.
inline uint32_t saved_registers() {
  uint32_t low = 0;
  uint32_t high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

inline Processor this_processor() {
  Processor found;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !has(c, 27)) return found;  // OSXSAVE
  const bool fma_f16c = has(c, 12) && has(c, 29);
  const uint32_t saved = saved_registers();
  if ((saved & 0x06) != 0x06 || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
  const unsigned subleaves = a;
  found.avx2 = fma_f16c && has(b, 5);
  const bool base = has(b, 16) && has(b, 17) && has(b, 30) && has(b, 31);  // F, DQ, BW, VL
  found.avx512_vnni = found.avx2 && base && has(c, 11) && (saved & 0xe6) == 0xe6;
  if (subleaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d))
    found.avx_vnni = found.avx2 && has(a, 4);
  return found;
}

#elif defined(__aarch64__) && defined(__linux__)
// Bit numbers, since older headers lack HWCAP_ASIMDDP and HWCAP2_I8MM.
inline Processor this_processor() {
  Processor found;
  found.neon_dotprod = (getauxval(AT_HWCAP) >> 20 & 1) != 0;
  found.neon_i8mm = found.neon_dotprod && (getauxval(AT_HWCAP2) >> 13 & 1) != 0;
  return found;
}

#elif defined(__aarch64__) && defined(__APPLE__)
inline bool has(const char* feature) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(feature, &value, &size, nullptr, 0) == 0 && value != 0;
}

inline Processor this_processor() {
  Processor found;
  found.neon_dotprod = has("hw.optional.arm.FEAT_DotProd");
  found.neon_i8mm = found.neon_dotprod && has("hw.optional.arm.FEAT_I8MM");
  return found;
}

#else
inline Processor this_processor() { return {}; }
#endif

}  // namespace
}  // namespace bita
