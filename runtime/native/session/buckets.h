// The part of the cache that a step attends to, if its graph lets the runtime choose: a step's cost
// then follows the text's length in a few sizes (`runtime/backends/buckets.py`).
#pragma once

#include <algorithm>
#include <cstdint>

namespace bita {

// The number of slots that a step attends to if it writes `num_slots` after `num_used`. num_known:
// rows that plain decoding has too. Plain and tree decoding attend to the same number of slots, and
// so get the same bits.
inline int64_t bucket_of(int64_t capacity, int64_t num_used, int64_t num_known, int64_t num_slots) {
  constexpr int64_t kMin = 256, kRoom = 128;
  const int64_t needed = std::max(num_used + num_known + kRoom, num_used + num_slots);
  int64_t size = kMin;
  while (size < needed && size < capacity) size *= 2;
  return std::min(size, capacity);
}

}  // namespace bita
