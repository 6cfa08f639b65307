// Pages of the native operators' key-value cache, which texts share if they begin alike.
//
// The slab is [L, pages, H, 2, 16 * D]: for each head a page holds keys [D, 16], then values [16,
// D]. A page takes memory once something is written to it, and holds zeros while it is unused.
#pragma once

#include <onnxruntime_c_api.h>

#include <cstdint>
#include <vector>

#include "../engine/adapter.h"
#include "../engine/manifest.h"

namespace bita {

// The number of pages that hold `num_slots` slots.
inline int64_t pages_for(int64_t num_slots) { return (num_slots + kPageSlots - 1) / kPageSlots; }

class PagePool {
 public:
  // type: float32 or float16. extra_bytes: memory beyond one text of the engine's capacity. Throws
  // a Fault if there is not enough memory even for that one.
  PagePool(const Manifest& manifest, ONNXTensorElementDataType type, int64_t extra_bytes);
  ~PagePool();
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  int64_t num_pages() const { return num_pages_; }
  int64_t num_free() const { return num_pages_ - num_known_ + static_cast<int64_t>(free_.size()); }
  int64_t num_used_bytes() const;
  int64_t page_bytes() const { return page_bytes_; }  // of one layer
  void* layer(int64_t index) const { return slab_ + index * num_pages_ * page_bytes_; }
  ONNXTensorElementDataType type() const { return type_; }

  // Take an unused page. Throws a Fault if there is none left.
  int64_t allocate();
  void share(int64_t page) { ++uses_[static_cast<size_t>(page)]; }
  // Drop one holder of a page; without holders the page is free and zeroed.
  void release(int64_t page);
  bool is_shared(int64_t page) const { return uses_[static_cast<size_t>(page)] > 1; }

  // Copy the first slots of a page to another page.
  void copy_slots(int64_t page, int64_t target, int64_t num_slots);
  // Copy one slot of a text to another; each is given by its page and the slot in that page.
  void move_slot(int64_t page, int64_t slot, int64_t target, int64_t target_slot);
  void clear_slots(int64_t page, int64_t first);  // `first` and the slots after it
  // Write a slot of an adapter's prefix.
  void write_prefix(const Adapter& adapter, int64_t index, int64_t page, int64_t slot);

 private:
  uint8_t* page_of(int64_t layer, int64_t page) const {
    return slab_ + (layer * num_pages_ + page) * page_bytes_;
  }
  template <class Cell>
  void copy(int64_t page, int64_t slot, int64_t target, int64_t target_slot, int64_t count);
  template <class Cell>
  void clear(int64_t page, int64_t first);

  const int64_t num_layers_, num_heads_, width_;
  const ONNXTensorElementDataType type_;
  const int64_t page_bytes_;
  int64_t num_pages_ = 0, num_known_ = 0;  // pages that were ever used
  uint8_t* slab_ = nullptr;
  std::vector<int64_t> free_;  // free pages among those
  std::vector<int32_t> uses_;  // holders of each page
};

}  // namespace bita
