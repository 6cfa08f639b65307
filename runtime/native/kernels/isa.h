// The instruction sets (ISAs) that this processor supports, and the one in use.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace bita {

// Kernels that run on this processor, the fastest first; the portable ones ("plain") come last.
std::vector<const Kernels*> isas();

// The kernels in use: the fastest until `use_isa` selects others.
const Kernels& kernels();

// Select the kernels called `name`. False, and nothing changes, if `isas` has none.
bool use_isa(const std::string& name);

}  // namespace bita
