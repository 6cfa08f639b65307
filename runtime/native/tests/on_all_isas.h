// Compares the bits of every ISA with those of the plain kernels.
#pragma once

#include <string>

#include "../kernels/isa.h"
#include "check.h"

namespace bita::tests {

// Run something on every available ISA and compare its result with that of the plain kernels.
template <class Run>
void on_all_isas(const std::string& what, const Run& run) {
  const auto wanted = run(kPlainKernels);
  for (const Kernels* isa : isas()) expect_same(run(*isa), wanted, what + " on " + isa->name);
}

}  // namespace bita::tests
