#include "vocabulary.h"

#include <chrono>
#include <cstring>

namespace bita {

namespace {

constexpr size_t kFewSlots = 1024;
constexpr uint64_t kMixer = 0x9E3779B97F4A7C15;

uint64_t mixed(uint64_t hash, uint64_t more) {
  hash = (hash ^ more) * kMixer;
  return hash ^ (hash >> 29);
}

}  // namespace

uint64_t hash_seed() {
  static const auto kSeed =
      static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
  return mixed(kSeed, reinterpret_cast<uintptr_t>(&kSeed));
}

bool Vocabulary::add(std::string_view token, uint32_t id) {
  if (id > kMaxId || token.size() > UINT32_MAX - text_.size()) return false;
  if ((size_ + 1) * 4 > slots_.size() * 3) grow();
  const uint32_t token_hash = hash(token);
  Slot& slot = slots_[slot_of(token, token_hash)];
  if (id >= spans_.size()) spans_.resize(id + 1);
  if (slot.id != kNone || spans_[id].is_there) return false;
  const auto start = static_cast<uint32_t>(text_.size());
  const auto length = static_cast<uint32_t>(token.size());
  slot = {token_hash, id, start, length};
  spans_[id] = {start, length, true};
  text_.append(token);
  ++size_;
  return true;
}

void Vocabulary::shrink() {
  text_.shrink_to_fit();
  spans_.shrink_to_fit();
}

std::optional<uint32_t> Vocabulary::id(std::string_view token) const {
  if (slots_.empty()) return std::nullopt;
  const Slot& slot = slots_[slot_of(token, hash(token))];
  if (slot.id == kNone) return std::nullopt;
  return slot.id;
}

std::optional<std::string_view> Vocabulary::token(uint64_t id) const {
  if (id >= spans_.size() || !spans_[id].is_there) return std::nullopt;
  return text(spans_[id].start, spans_[id].length);
}

// Returns the slot of the token, or the free slot where it belongs.
size_t Vocabulary::slot_of(std::string_view token, uint32_t hash) const {
  size_t at = hash & (slots_.size() - 1);
  while (slots_[at].id != kNone &&
         (slots_[at].hash != hash || text(slots_[at].start, slots_[at].length) != token)) {
    at = (at + 1) & (slots_.size() - 1);
  }
  return at;
}

uint32_t Vocabulary::hash(std::string_view token) const {
  uint64_t value = mixed(seed_, token.size());
  while (token.size() > 8) {
    uint64_t eight;
    std::memcpy(&eight, token.data(), 8);
    value = mixed(value, eight);
    token.remove_prefix(8);
  }
  uint64_t last = 0;
  std::memcpy(&last, token.data(), token.size());
  return static_cast<uint32_t>(mixed(value, last) >> 8);
}

void Vocabulary::grow() {
  const std::vector<Slot> before = std::move(slots_);
  slots_.assign(before.empty() ? kFewSlots : before.size() * 2, Slot{});
  for (const Slot& slot : before) {
    if (slot.id == kNone) continue;
    size_t at = slot.hash & (slots_.size() - 1);
    while (slots_[at].id != kNone) at = (at + 1) & (slots_.size() - 1);
    slots_[at] = slot;
  }
}

}  // namespace bita
