#include "paged_text.h"

#include <algorithm>

namespace bita {

PagedText::~PagedText() { cut(0); }

void PagedText::keep(int64_t num_tokens) { cut(num_tokens); }

void PagedText::cut(int64_t num_tokens) {
  length_ = std::min(length_, num_tokens);
  const int64_t kept = pages_for(length_);
  while (num_pages() > kept) {
    pool_.release(pages_.back());
    pages_.pop_back();
  }
}

int64_t PagedText::num_missing(int64_t num_slots) const {
  const int64_t last = pages_for(length_ + num_slots);
  int64_t count = std::max<int64_t>(last - num_pages(), 0);
  for (int64_t i = length_ / kPageSlots; i < std::min(last, num_pages()); ++i) {
    count += pool_.is_shared(pages_[static_cast<size_t>(i)]);
  }
  return count;
}

void PagedText::reserve(int64_t num_slots) {
  const int64_t last = pages_for(length_ + num_slots);
  while (num_pages() < last) pages_.push_back(pool_.allocate());
  for (int64_t i = length_ / kPageSlots; i < last; ++i) {
    int64_t& page = pages_[static_cast<size_t>(i)];
    if (!pool_.is_shared(page)) continue;
    const int64_t own = pool_.allocate();
    pool_.copy_slots(page, own, std::max<int64_t>(length_ - i * kPageSlots, 0));
    pool_.release(page);
    page = own;
  }
}

void PagedText::move_slot(int64_t source, int64_t target) {
  pool_.move_slot(pages_[static_cast<size_t>(source / kPageSlots)], source % kPageSlots,
                  pages_[static_cast<size_t>(target / kPageSlots)], target % kPageSlots);
}

void PagedText::clear_rest() {
  for (int64_t i = length_ / kPageSlots; i < num_pages(); ++i) {
    const int64_t page = pages_[static_cast<size_t>(i)];
    if (pool_.is_shared(page)) continue;  // no step wrote to it
    pool_.clear_slots(page, std::max<int64_t>(length_ - i * kPageSlots, 0));
  }
}

void PagedText::share(const CachedText& other) {
  const auto& from = static_cast<const PagedText&>(other);
  cut(0);
  const int64_t count = pages_for(from.length_);
  pages_.assign(from.pages_.begin(), from.pages_.begin() + count);
  for (const int64_t page : pages_) pool_.share(page);
  length_ = from.length_;
}

}  // namespace bita
