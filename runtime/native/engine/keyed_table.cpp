#include "keyed_table.h"

#include <algorithm>

namespace bita {

ContinuationTable keyed_table(const std::vector<uint64_t>& keys,
                              const std::vector<uint32_t>& values) {
  constexpr double kMaxLoad = 0.7;
  const auto count = static_cast<double>(keys.size()) -
                     static_cast<double>(std::count(keys.begin(), keys.end(), 0));
  int log2_slots = 1;
  while ((int64_t{1} << log2_slots) <= static_cast<int64_t>(count / kMaxLoad)) ++log2_slots;
  const size_t size = size_t{1} << log2_slots;
  ContinuationTable table{std::vector<uint16_t>(size), std::vector<uint32_t>(size)};
  for (size_t i = 0; i < keys.size(); ++i) {
    int64_t run[kLongestRun];
    int64_t length = 0;
    for (int part = kLongestRun - 1; part >= 0; --part) {
      const auto token = static_cast<int64_t>(keys[i] >> (21 * part) & 0x1FFFFF) - 1;
      if (token >= 0) run[length++] = token;
    }
    if (length == 0) continue;
    const Place place = place_of(run, length, log2_slots);
    size_t slot = place.slot;
    while (table.values[slot] && table.marks[slot] != place.mark) slot = (slot + 1) % size;
    if (table.values[slot]) continue;
    table.marks[slot] = place.mark;
    table.values[slot] = values[i];
  }
  return table;
}

}  // namespace bita
