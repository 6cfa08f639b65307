#include "isa.h"

#include <atomic>

#include "processor.h"

namespace bita {
namespace {

std::atomic<const Kernels*>& in_use() {
  static std::atomic<const Kernels*> isa{isas().front()};
  return isa;
}

}  // namespace

std::vector<const Kernels*> isas() {
  const Processor here = this_processor();
  std::vector<const Kernels*> found;
#ifdef BITA_HAS_AVX512_VNNI
  if (here.avx512_vnni) found.push_back(&kAvx512VnniKernels);
#endif
#ifdef BITA_HAS_AVX_VNNI
  if (here.avx_vnni) found.push_back(&kAvxVnniKernels);
#endif
#ifdef BITA_HAS_AVX2
  if (here.avx2) found.push_back(&kAvx2Kernels);
#endif
#ifdef BITA_HAS_NEON_I8MM
  if (here.neon_i8mm) found.push_back(&kNeonI8mmKernels);
#endif
#ifdef BITA_HAS_NEON_DOTPROD
  if (here.neon_dotprod) found.push_back(&kNeonDotprodKernels);
#endif
#ifdef BITA_HAS_NEON
  found.push_back(&kNeonKernels);
#endif
  found.push_back(&kPlainKernels);
  (void)here;  // unused if only the portable kernels were compiled
  return found;
}

const Kernels& kernels() { return *in_use().load(std::memory_order_relaxed); }

bool use_isa(const std::string& name) {
  for (const Kernels* isa : isas()) {
    if (name != isa->name) continue;
    in_use().store(isa);
    return true;
  }
  return false;
}

}  // namespace bita
