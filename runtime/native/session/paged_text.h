// A text for native operators: pages in the order of its slots, which texts share if they begin
// alike.
#pragma once

#include <cstdint>
#include <vector>

#include "cached_text.h"
#include "page_pool.h"

namespace bita {

class PagedText : public CachedText {
 public:
  explicit PagedText(PagePool& pool) : pool_(pool) {}
  ~PagedText() override;

  int64_t num_pages() const { return static_cast<int64_t>(pages_.size()); }
  const std::vector<int64_t>& pages() const { return pages_; }

  // Keep only the pages of the first tokens.
  void keep(int64_t num_tokens) override;
  int64_t num_missing(int64_t num_slots) const override;
  void reserve(int64_t num_slots) override;
  void clear_rest() override;
  void share(const CachedText& other) override;

 private:
  void move_slot(int64_t source, int64_t target) override;
  void cut(int64_t num_tokens);

  PagePool& pool_;
  std::vector<int64_t> pages_;
};

}  // namespace bita
