#include "ngram_index.h"

#include <algorithm>

namespace bita {
namespace {

constexpr size_t kFirstSlots = 64;
constexpr uint64_t kRunMix = 0x9E3779B97F4A7C15u;

}  // namespace

void Runs::clear() {
  std::fill(slots_.begin(), slots_.end(), 0);
  num_set_ = 0;
}

size_t Runs::slot_of(const std::vector<int64_t>& text, int64_t end) const {
  uint64_t hash = 0;
  for (int64_t place = end - length_; place < end; ++place)
    hash =
        (hash ^ (hash >> 29) ^ static_cast<uint64_t>(text[static_cast<size_t>(place)])) * kRunMix;
  const auto run = text.begin() + (end - length_);
  size_t slot = static_cast<size_t>(hash >> 32) & (slots_.size() - 1);
  while (slots_[slot] && !std::equal(run, run + length_, text.begin() + (slots_[slot] - length_)))
    slot = (slot + 1) & (slots_.size() - 1);
  return slot;
}

void Runs::grow(const std::vector<int64_t>& text) {
  std::vector<int64_t> old(std::max(kFirstSlots, 2 * slots_.size()));
  old.swap(slots_);
  for (const int64_t place : old)
    if (place) slots_[slot_of(text, place)] = place;
}

void Runs::set(const std::vector<int64_t>& text, int64_t place) {
  if (2 * static_cast<size_t>(num_set_ + 1) > slots_.size()) grow(text);
  int64_t& slot = slots_[slot_of(text, place)];
  num_set_ += slot == 0;
  slot = place;
}

int64_t Runs::find(const std::vector<int64_t>& text, int64_t end) const {
  return slots_.empty() ? 0 : slots_[slot_of(text, end)];
}

void NgramIndex::clear() {
  text_.clear();
  for (Runs& runs : runs_) runs.clear();
  match_length_ = match_place_ = 0;
}

void NgramIndex::extend(const int64_t* token_ids, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t place = static_cast<int64_t>(text_.size());
    for (int64_t length = 1; length <= std::min(kLongestNgram, place); ++length)
      runs_[static_cast<size_t>(length - 1)].set(text_, place);
    text_.push_back(token_ids[i]);
  }
  look_up();
}

void NgramIndex::look_up() {
  const int64_t end = static_cast<int64_t>(text_.size());
  match_length_ = match_place_ = 0;
  for (int64_t length = std::min(kLongestNgram, end); length > 0 && !match_place_; --length) {
    match_place_ = runs_[static_cast<size_t>(length - 1)].find(text_, end);
    match_length_ = match_place_ ? length : 0;
  }
  const int64_t max_length = std::min(kMaxMatch, match_place_);
  const auto same = [&](int64_t back) {
    return text_[static_cast<size_t>(match_place_ - back)] ==
           text_[static_cast<size_t>(end - back)];
  };
  while (match_length_ < max_length && same(match_length_ + 1)) ++match_length_;
}

int64_t NgramIndex::following(int64_t number) const {
  const int64_t size = static_cast<int64_t>(text_.size());
  return text_[static_cast<size_t>(match_place_ + number % (size - match_place_))];
}

}  // namespace bita
