// A text of operators other than the native ones: one slab of slots, the prefix's first, then the
// text's.
#pragma once

#include <cstdint>
#include <memory>

#include "cached_text.h"
#include "slab.h"

namespace bita {

class SlabText final : public CachedText {
 public:
  explicit SlabText(SlabPool& pool) : pool_(pool) {}
  ~SlabText() override { give_up(); }

  // What the text lies in since it took a prefix.
  const Slab& slab() const { return *slab_; }
  int64_t prefix_length() const { return prefix_length_; }
  // Put the rows of a step, [2L, H, Q, D], after the text. They lie in the graph's memory.
  void write(const void* rows, int64_t num_rows);

  // Have this adapter's prefix in the first slots; the text is lost where it would have to move.
  void take_prefix(const Adapter& adapter) override;
  int64_t num_missing(int64_t) const override { return slab_ ? 0 : 1; }
  void reserve(int64_t num_slots) override;
  void give_up() override;
  void clear_rest() override;
  void share(const CachedText& other) override;

 private:
  void move_slot(int64_t source, int64_t target) override;

  SlabPool& pool_;
  std::unique_ptr<Slab> slab_;
  const Adapter* adapter_ = nullptr;  // whose prefix is there
  int64_t prefix_length_ = 0;
};

}  // namespace bita
