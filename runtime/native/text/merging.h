// The merges of one word.
#pragma once

#include <cstdint>
#include <vector>

#include "merge_table.h"

namespace bita {

// Merges pairs of neighbors until none is left that the table has: always the pair of the lowest
// rank, of several the leftmost. Cost: n log n for n symbols.
void merge_pairs(const MergeTable& merges, std::vector<uint32_t>& symbols);

}  // namespace bita
