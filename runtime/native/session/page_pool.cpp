#include "page_pool.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "../kernels/numbers.h"

namespace bita {

namespace {

int64_t cell_bytes(ONNXTensorElementDataType type) {
  return type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 ? 2 : 4;
}

// Zeroed memory that is allocated page by page, when written; null if there is no room.
uint8_t* lazy_zeros(int64_t num_bytes) {
  void* place = mmap(nullptr, static_cast<size_t>(num_bytes), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (place == MAP_FAILED) return nullptr;
  // with huge pages the first slot of each layer would take 2 MB
  madvise(place, static_cast<size_t>(num_bytes), MADV_NOHUGEPAGE);
  return static_cast<uint8_t*>(place);
}

void store(float value, uint16_t* place) { *place = to_half(value); }
void store(float value, float* place) { *place = value; }

}  // namespace

PagePool::PagePool(const Manifest& manifest, ONNXTensorElementDataType type, int64_t extra_bytes)
    : num_layers_(manifest.num_layers),
      num_heads_(manifest.num_kv_heads),
      width_(manifest.head_dim),
      type_(type),
      page_bytes_(num_heads_ * 2 * kPageSlots * width_ * cell_bytes(type)) {
  // One more than C slots need, since both text and prefix may leave their last page partly empty.
  const int64_t needed = pages_for(manifest.capacity - 1) + 1;
  int64_t further = std::max<int64_t>(extra_bytes, 0) / (num_layers_ * page_bytes_);
  for (;; further /= 2) {
    num_pages_ = needed + further;
    slab_ = lazy_zeros(num_layers_ * num_pages_ * page_bytes_);
    if (slab_ || !further) break;
  }
  if (!slab_) {
    throw Fault(FaultKind::kEngine,
                "a cache of " +
                    std::to_string(num_layers_ * num_pages_ * page_bytes_ / 1000000000 + 1) +
                    " GB, for " + std::to_string(manifest.capacity) +
                    " slots, cannot be allocated; rebuild the engine with a smaller --capacity");
  }
  uses_.resize(static_cast<size_t>(num_pages_));
}

PagePool::~PagePool() {
  if (slab_) munmap(slab_, static_cast<size_t>(num_layers_ * num_pages_ * page_bytes_));
}

int64_t PagePool::num_used_bytes() const {
  return (num_known_ - static_cast<int64_t>(free_.size())) * num_layers_ * page_bytes_;
}

int64_t PagePool::allocate() {
  if (!num_free()) {
    throw Fault(FaultKind::kUse, "all " + std::to_string(num_pages_) +
                                     " pages of the cache are in use; free a session first, or "
                                     "open the engine with more cache_bytes");
  }
  int64_t page = num_known_;
  if (free_.empty()) {
    ++num_known_;
  } else {  // reusing a page takes no more memory
    page = free_.back();
    free_.pop_back();
  }
  uses_[static_cast<size_t>(page)] = 1;
  return page;
}

void PagePool::release(int64_t page) {
  if (--uses_[static_cast<size_t>(page)] > 0) return;
  for (int64_t layer = 0; layer < num_layers_; ++layer) {
    std::memset(page_of(layer, page), 0, static_cast<size_t>(page_bytes_));
  }
  free_.push_back(page);
}

template <class Cell>
void PagePool::copy(int64_t page, int64_t slot, int64_t target, int64_t target_slot,
                    int64_t count) {
  const int64_t side = kPageSlots * width_;
  for (int64_t layer = 0; layer < num_layers_; ++layer) {
    const auto* from = reinterpret_cast<const Cell*>(page_of(layer, page));
    auto* to = reinterpret_cast<Cell*>(page_of(layer, target));
    for (int64_t head = 0; head < num_heads_; ++head, from += 2 * side, to += 2 * side) {
      for (int64_t d = 0; d < width_; ++d) {
        std::copy_n(from + d * kPageSlots + slot, count, to + d * kPageSlots + target_slot);
      }
      std::copy_n(from + side + slot * width_, count * width_, to + side + target_slot * width_);
    }
  }
}

template <class Cell>
void PagePool::clear(int64_t page, int64_t first) {
  const int64_t side = kPageSlots * width_;
  for (int64_t layer = 0; layer < num_layers_; ++layer) {
    auto* cells = reinterpret_cast<Cell*>(page_of(layer, page));
    for (int64_t head = 0; head < num_heads_; ++head, cells += 2 * side) {
      for (int64_t d = 0; d < width_; ++d) {
        std::fill(cells + d * kPageSlots + first, cells + (d + 1) * kPageSlots, Cell{});
      }
      std::fill(cells + side + first * width_, cells + 2 * side, Cell{});
    }
  }
}

void PagePool::copy_slots(int64_t page, int64_t target, int64_t num_slots) {
  if (cell_bytes(type_) == 2) {
    copy<uint16_t>(page, 0, target, 0, num_slots);
  } else {
    copy<float>(page, 0, target, 0, num_slots);
  }
}

void PagePool::move_slot(int64_t page, int64_t slot, int64_t target, int64_t target_slot) {
  if (cell_bytes(type_) == 2) {
    copy<uint16_t>(page, slot, target, target_slot, 1);
  } else {
    copy<float>(page, slot, target, target_slot, 1);
  }
}

void PagePool::clear_slots(int64_t page, int64_t first) {
  if (cell_bytes(type_) == 2) {
    clear<uint16_t>(page, first);
  } else {
    clear<float>(page, first);
  }
}

void PagePool::write_prefix(const Adapter& adapter, int64_t index, int64_t page, int64_t slot) {
  const int64_t side = kPageSlots * width_, length = adapter.prefix_length();
  const auto write = [&](auto* cells, int64_t layer, int64_t head) {
    const auto first = static_cast<size_t>(((layer * num_heads_ + head) * length + index) * width_);
    cells += head * 2 * side;
    for (int64_t d = 0; d < width_; ++d) {
      const size_t at = first + static_cast<size_t>(d);
      store(adapter.prefix_keys.values[at], cells + d * kPageSlots + slot);
      store(adapter.prefix_values.values[at], cells + side + slot * width_ + d);
    }
  };
  for (int64_t layer = 0; layer < num_layers_; ++layer) {
    uint8_t* place = page_of(layer, page);
    for (int64_t head = 0; head < num_heads_; ++head) {
      if (cell_bytes(type_) == 2) {
        write(reinterpret_cast<uint16_t*>(place), layer, head);
      } else {
        write(reinterpret_cast<float*>(place), layer, head);
      }
    }
  }
}

}  // namespace bita
