#include "continuations.h"

#include <algorithm>

namespace bita {
namespace {

constexpr uint64_t kMix = 0x9E3779B97F4A7C15u;
constexpr int kTokenBits = 21;  // of a key, for each token
constexpr int kSureBits = 7;    // of a value; the others are the token

int log2_of(int64_t power) {
  int log = 0;
  while (power >> (log + 1)) ++log;
  return log;
}

}  // namespace

Continuation Continuations::find(const int64_t* before, int64_t count) const {
  if (!keys) return {};
  const int shift = 64 - log2_of(num_slots);
  for (int64_t length = std::min(kLongestRun, count); length > 0; --length) {
    uint64_t key = 0;
    for (int64_t i = count - length; i < count; ++i)
      key = key << kTokenBits | (static_cast<uint64_t>(before[i]) + 1);
    int64_t slot = static_cast<int64_t>(key * kMix >> shift);
    while (keys[slot] != key && keys[slot]) slot = (slot + 1) & (num_slots - 1);
    if (keys[slot]) return {values[slot] >> kSureBits, values[slot] & ((1u << kSureBits) - 1)};
  }
  return {};
}

}  // namespace bita
