// Merging of the symbols of one word.
#pragma once

#include <cstdint>
#include <vector>

#include "merge_table.h"

namespace bita {

// Merges adjacent pairs until the table has none of them. The pair of the lowest rank comes first,
// and the leftmost of several. Takes O(n log n) for n symbols.
void merge_pairs(const MergeTable& merges, std::vector<uint32_t>& symbols);

}  // namespace bita
