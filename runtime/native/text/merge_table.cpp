#include "merge_table.h"

#include <utility>

namespace bita {

namespace {

constexpr size_t kFewSlots = 64;

}  // namespace

void MergeTable::reserve(size_t num_merges) {
  size_t num_slots = kFewSlots;
  while (num_slots * 3 < num_merges * 4) num_slots *= 2;
  if (num_slots > slots_.size()) resize(num_slots);
}

void MergeTable::add(uint32_t left, uint32_t right, Merge merge) {
  reserve(size_ + 1);
  Slot& slot = slots_[slot_of(key_of(left, right))];
  if (slot.key == kFree) ++size_;
  slot = {key_of(left, right), merge};
}

void MergeTable::resize(size_t num_slots) {
  const std::vector<Slot> before = std::move(slots_);
  slots_.assign(num_slots, Slot{});
  shift_ = 64;
  for (size_t size = 1; size < num_slots; size *= 2) --shift_;
  for (const Slot& slot : before) {
    if (slot.key != kFree) slots_[slot_of(slot.key)] = slot;
  }
}

}  // namespace bita
