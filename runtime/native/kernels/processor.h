// What this processor and its operating system can run, asked of them directly: the C++ compiler of
// the package ziglang answers every __builtin_cpu_supports with no, and g++ 12 does not know
// "avxvnni".
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace bita {
namespace {

struct Processor {
  bool avx2 = false;         // with FMA and F16C
  bool avx_vnni = false;     // of 256 bits
  bool avx512_vnni = false;  // with F, BW, VL, DQ
};

#if defined(__x86_64__)
inline bool has(unsigned word, int bit) { return (word >> bit & 1) != 0; }

// Which registers the operating system saves.
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

#else
inline Processor this_processor() { return {}; }
#endif

}  // namespace
}  // namespace bita
