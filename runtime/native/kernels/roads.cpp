#include "roads.h"

#include <atomic>

namespace bita {
namespace {

#if defined(__x86_64__) || defined(_M_X64)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}
#endif

#ifdef BITA_HAS_AVX_VNNI
// g++ 12 does not know the name "avxvnni".
bool has_avx_vnni() {
  if (!has_avx2()) return false;
  unsigned eax = 7, ebx = 0, ecx = 1, edx = 0;
  unsigned most = 0;
  __asm__("cpuid" : "=a"(most), "=b"(ebx), "=c"(ecx), "=d"(edx) : "a"(7), "c"(0));
  if (most < 1) return false;
  __asm__("cpuid" : "=a"(eax), "=b"(ebx), "=c"(ecx), "=d"(edx) : "a"(7), "c"(1));
  return (eax >> 4 & 1) != 0;
}
#endif

#ifdef BITA_HAS_AVX512_VNNI
bool has_avx512_vnni() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}
#endif

std::atomic<const Kernels*>& in_use() {
  static std::atomic<const Kernels*> road{roads().front()};
  return road;
}

}  // namespace

std::vector<const Kernels*> roads() {
  std::vector<const Kernels*> found;
#ifdef BITA_HAS_AVX512_VNNI
  if (has_avx512_vnni()) found.push_back(&kAvx512VnniKernels);
#endif
#ifdef BITA_HAS_AVX_VNNI
  if (has_avx_vnni()) found.push_back(&kAvxVnniKernels);
#endif
#ifdef BITA_HAS_AVX2
  if (has_avx2()) found.push_back(&kAvx2Kernels);
#endif
  found.push_back(&kPlainKernels);
  return found;
}

const Kernels& kernels() { return *in_use().load(std::memory_order_relaxed); }

bool use_road(const std::string& name) {
  for (const Kernels* road : roads()) {
    if (name != road->name) continue;
    in_use().store(road);
    return true;
  }
  return false;
}

}  // namespace bita
