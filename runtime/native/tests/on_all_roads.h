// Bits of every road against those of the plain one.
#pragma once

#include <string>

#include "../kernels/roads.h"
#include "check.h"

namespace bita::tests {

// Run something on every road that is here and compare what it returns with the plain road's.
template <class Run>
void on_all_roads(const std::string& what, const Run& run) {
  const auto wanted = run(kPlainKernels);
  for (const Kernels* road : roads()) expect_same(run(*road), wanted, what + " on " + road->name);
}

}  // namespace bita::tests
