// Continuations in adapter files of format 3 and earlier, which store keys instead of marks.
#pragma once

#include <cstdint>
#include <vector>

#include "adapter.h"

namespace bita {

// Convert the table of a file that has keys instead of marks
// (`bita.continuations.keyed_continuations`). A key packs up to three tokens of 21 bits, each plus
// 1; 0 means no token.
ContinuationTable keyed_table(const std::vector<uint64_t>& keys,
                              const std::vector<uint32_t>& values);

}  // namespace bita
