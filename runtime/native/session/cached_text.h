// The cached rows of one text.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../engine/adapter.h"

namespace bita {

class CachedText {
 public:
  CachedText() = default;
  virtual ~CachedText() = default;
  CachedText(const CachedText&) = delete;
  CachedText& operator=(const CachedText&) = delete;

  int64_t length() const { return length_; }  // tokens

  // Keep only the first tokens.
  virtual void keep(int64_t num_tokens) { length_ = std::min(length_, num_tokens); }
  // The number of pages or slabs that the text still needs to write num_slots after it.
  virtual int64_t num_missing(int64_t /*num_slots*/) const { return 0; }
  // Make the slots after the text exclusive to it. Throws a Fault if that is impossible.
  virtual void reserve(int64_t) {}
  // Keep the rows of the accepted path, in order from the root, and drop the step's other rows.
  void commit(const std::vector<int64_t>& path);
  void append(int64_t num_tokens) { length_ += num_tokens; }
  // Keep nothing, and leave the memory to other texts.
  virtual void give_up() { keep(0); }
  // Zero the slots after the text that steps have written.
  virtual void clear_rest() = 0;
  // Put the adapter values that the text's steps read into the cache.
  virtual void take_prefix(const Adapter&) {}
  // Share the rows of another text of the same engine, which this one continues.
  virtual void share(const CachedText& other) = 0;

 protected:
  // Copy the row of one slot of the text to another slot.
  virtual void move_slot(int64_t source, int64_t target) = 0;

  int64_t length_ = 0;
};

}  // namespace bita
