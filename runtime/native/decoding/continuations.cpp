#include "continuations.h"

#include <algorithm>

namespace bita {
namespace {

constexpr uint64_t kTableMix = 0x9E3779B97F4A7C15u;
constexpr uint64_t kTableMixAgain = 0xBF58476D1CE4E5B9u;
constexpr int kMarkShift = 24;  // position of the mark in a hash; the slot is its upper bits
constexpr int kTokenBits = 21;  // of a key for each token
constexpr int kSureBits = 7;    // of a value; the other bits are the token

int log2_of(int64_t power) {
  int log = 0;
  while (power >> (log + 1)) ++log;
  return log;
}

}  // namespace

Place place_of(const int64_t* tokens, int64_t count, int log2_slots) {
  uint64_t key = 0;
  for (int64_t i = 0; i < count; ++i)
    key = key << kTokenBits | (static_cast<uint64_t>(tokens[i]) + 1);
  uint64_t mixed = key * kTableMix;
  mixed = (mixed ^ mixed >> 32) * kTableMixAgain;
  return {mixed >> (64 - log2_slots), static_cast<uint16_t>(mixed >> kMarkShift)};
}

Continuation Continuations::find(const int64_t* before, int64_t count) const {
  if (!marks) return {};
  const int log2_slots = log2_of(num_slots);
  const uint64_t last = static_cast<uint64_t>(num_slots) - 1;
  for (int64_t length = std::min(kLongestRun, count); length > 0; --length) {
    auto [slot, mark] = place_of(before + count - length, length, log2_slots);
    while (values[slot] && marks[slot] != mark) slot = (slot + 1) & last;
    if (values[slot]) return {values[slot] >> kSureBits, values[slot] & ((1u << kSureBits) - 1)};
  }
  return {};
}

}  // namespace bita
