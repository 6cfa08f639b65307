// Which road this processor takes.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace bita {

// Roads that run here, the fastest first; the plain one is always the last.
std::vector<const Kernels*> roads();

// The road in use: the fastest, until `use_road` names another.
const Kernels& kernels();

// False for a name that is not one of `roads`.
bool use_road(const std::string& name);

}  // namespace bita
