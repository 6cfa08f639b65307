// Merges of token pairs, with their ranks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "vocabulary.h"

namespace bita {

struct Merge {
  uint32_t rank;  // lower ranks are merged first
  uint32_t id;    // token that the pair becomes
};

// A hash table of merges. A slot takes 16 bytes, and at least a quarter of the slots are free.
class MergeTable {
 public:
  void reserve(size_t num_merges);

  // Adds a merge, or replaces that of the same pair.
  void add(uint32_t left, uint32_t right, Merge merge);

  // Returns the merge of a pair, or nullptr.
  const Merge* find(uint32_t left, uint32_t right) const {
    if (slots_.empty()) return nullptr;
    const Slot& slot = slots_[slot_of(key_of(left, right))];
    return slot.key == kFree ? nullptr : &slot.merge;
  }

  size_t size() const { return size_; }

 private:
  static constexpr uint64_t kFree = UINT64_MAX;
  struct Slot {
    uint64_t key = kFree;
    Merge merge{};
  };

  static uint64_t key_of(uint32_t left, uint32_t right) {
    return static_cast<uint64_t>(left) << 32 | right;
  }
  size_t slot_of(uint64_t key) const {
    uint64_t hash = (key ^ seed_) * 0x9E3779B97F4A7C15;
    hash = (hash ^ (hash >> 32)) * 0xD6E8FEB86659FD93;
    size_t at = hash >> shift_;
    while (slots_[at].key != kFree && slots_[at].key != key) at = (at + 1) & (slots_.size() - 1);
    return at;
  }
  void resize(size_t num_slots);

  uint64_t seed_ = hash_seed();
  size_t size_ = 0;
  int shift_ = 63;
  std::vector<Slot> slots_;
};

}  // namespace bita
