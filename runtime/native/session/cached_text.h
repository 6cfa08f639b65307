// The rows of one text in the cache: pages in the order of its slots.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "page_pool.h"

namespace bita {

class CachedText {
 public:
  explicit CachedText(PagePool& pool) : pool_(pool) {}
  ~CachedText() { keep(0); }
  CachedText(const CachedText&) = delete;
  CachedText& operator=(const CachedText&) = delete;

  int64_t length() const { return length_; }  // tokens
  int64_t num_pages() const { return static_cast<int64_t>(pages_.size()); }
  const std::vector<int64_t>& pages() const { return pages_; }

  // Keep the first tokens only, and no page after theirs.
  void keep(int64_t num_tokens);
  // Free pages that `reserve` takes.
  int64_t num_missing(int64_t num_slots) const;
  // Take pages for the slots after the text, which nobody else has then. Throws a Fault if there
  // are too few.
  void reserve(int64_t num_slots);
  // Keep the rows of the accepted path, in order from the root, and forget the step's other rows.
  void commit(const std::vector<int64_t>& path);
  void append(int64_t num_tokens) { length_ += num_tokens; }
  // Make zeros of what steps left after the text.
  void clear_rest();
  // Share the pages of another text, which this one continues.
  void share(const CachedText& other);

 private:
  PagePool& pool_;
  std::vector<int64_t> pages_;
  int64_t length_ = 0;
};

}  // namespace bita
