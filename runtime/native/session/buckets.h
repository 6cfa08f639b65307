// How much of the cache a step looks at, where its graph lets the runtime say: a step's cost then
// follows the text's length in a few sizes (`runtime/backends/buckets.py`).
#pragma once

#include <algorithm>
#include <cstdint>

namespace bita {

// The slots that a step looks at which writes `num_slots` after `num_used`. num_known: rows that
// plain decoding has too. Plain and tree decoding look at equally many, and get the same bits.
inline int64_t bucket_of(int64_t capacity, int64_t num_used, int64_t num_known, int64_t num_slots) {
  constexpr int64_t kMin = 256, kRoom = 128;
  const int64_t needed = std::max(num_used + num_known + kRoom, num_used + num_slots);
  int64_t size = kMin;
  while (size < needed && size < capacity) size *= 2;
  return std::min(size, capacity);
}

}  // namespace bita
