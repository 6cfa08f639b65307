// A text for operators other than the native ones: one slab of slots, first those of the prefix,
// then those of the text.
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

  // The slab of the text; it has one once `take_prefix` was called.
  const Slab& slab() const { return *slab_; }
  int64_t prefix_length() const { return prefix_length_; }
  // Store the rows of a step, [2L, H, Q, D], after the text. `rows` is graph memory.
  void write(const void* rows, int64_t num_rows);

  // Put this adapter's prefix into the first slots; drops the text if it would have to move.
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
  const Adapter* adapter_ = nullptr;  // its prefix is in the slab
  int64_t prefix_length_ = 0;
};

}  // namespace bita
