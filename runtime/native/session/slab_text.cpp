#include "slab_text.h"

#include <sys/mman.h>

#include <atomic>
#include <cstring>

#include "../base/fault.h"
#include "../kernels/numbers.h"

namespace bita {

namespace {

std::atomic<uint64_t> next_number{1};

int64_t cell_bytes(ONNXTensorElementDataType type) {
  return type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 ? 2 : 4;
}

}  // namespace

SlabText::SlabText(const Manifest& manifest, ONNXTensorElementDataType type)
    : num_sides_(2 * manifest.num_layers),
      num_heads_(manifest.num_kv_heads),
      capacity_(manifest.capacity),
      row_bytes_(manifest.head_dim * cell_bytes(type)),
      type_(type),
      number_(next_number++) {
  const int64_t side_bytes = num_heads_ * capacity_ * row_bytes_;
  const auto num_bytes = static_cast<size_t>(num_sides_ * side_bytes);
  void* place = mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (place == MAP_FAILED) {
    throw Fault(FaultKind::kEngine,
                "a cache of " + std::to_string(num_bytes / 1000000000 + 1) + " GB, for " +
                    std::to_string(capacity_) +
                    " slots, cannot be allocated; rebuild the engine with a smaller --capacity");
  }
  // with huge pages the first slot of each head would take 2 MB
  madvise(place, num_bytes, MADV_NOHUGEPAGE);
  slab_ = static_cast<uint8_t*>(place);
  for (int64_t side = 0; side < num_sides_; ++side) {
    const std::string name = std::to_string(side / 2) + (side % 2 ? ".value" : ".key");
    values_.emplace_back(name,
                         tensor_over(slab_ + side * side_bytes, static_cast<size_t>(side_bytes),
                                     {1, num_heads_, capacity_, manifest.head_dim}, type));
  }
}

SlabText::~SlabText() {
  values_.clear();
  munmap(slab_, static_cast<size_t>(num_sides_ * num_heads_ * capacity_ * row_bytes_));
}

uint8_t* SlabText::row(int64_t side, int64_t head, int64_t slot) const {
  return slab_ + ((side * num_heads_ + head) * capacity_ + slot) * row_bytes_;
}

template <class Use>
void SlabText::each_head(Use use) const {
  for (int64_t side = 0; side < num_sides_; ++side)
    for (int64_t head = 0; head < num_heads_; ++head) use(side, head);
}

void SlabText::take_prefix(const Adapter& adapter) {
  if (adapter_ == &adapter) return;
  if (adapter.prefix_length() != prefix_length_) keep(0);
  prefix_length_ = adapter.prefix_length();
  adapter_ = &adapter;
  const int64_t width = row_bytes_ / cell_bytes(type_);
  each_head([&](int64_t side, int64_t head) {
    const FloatArray& from = side % 2 ? adapter.prefix_values : adapter.prefix_keys;
    const int64_t first = (side / 2 * num_heads_ + head) * prefix_length_ * width;
    for (int64_t i = 0; i < prefix_length_ * width; ++i) {
      const float value = from.values[static_cast<size_t>(first + i)];
      uint8_t* place = row(side, head, 0) + i * cell_bytes(type_);
      if (cell_bytes(type_) == 2) {
        const uint16_t half = to_half(value);
        std::memcpy(place, &half, sizeof half);
      } else {
        std::memcpy(place, &value, sizeof value);
      }
    }
  });
}

void SlabText::write(const void* rows, int64_t num_rows) {
  const auto bytes = static_cast<size_t>(num_rows * row_bytes_);
  const auto* from = static_cast<const uint8_t*>(rows);
  each_head([&](int64_t side, int64_t head) {
    std::memcpy(row(side, head, prefix_length_ + length_), from, bytes);
    from += bytes;
  });
}

void SlabText::move_slot(int64_t source, int64_t target) {
  each_head([&](int64_t side, int64_t head) {
    std::memcpy(row(side, head, prefix_length_ + target), row(side, head, prefix_length_ + source),
                static_cast<size_t>(row_bytes_));
  });
}

// The prefix is back with the next answer.
void SlabText::clear_rest() {
  adapter_ = nullptr;
  const int64_t first = prefix_length_ + length_;
  each_head([&](int64_t side, int64_t head) {
    std::memset(row(side, head, 0), 0, static_cast<size_t>(prefix_length_ * row_bytes_));
    std::memset(row(side, head, first), 0, static_cast<size_t>((capacity_ - first) * row_bytes_));
  });
}

void SlabText::share(const CachedText& other) {
  const auto& from = static_cast<const SlabText&>(other);
  adapter_ = from.adapter_;
  prefix_length_ = from.prefix_length_;
  length_ = from.length_;
  const auto bytes = static_cast<size_t>((prefix_length_ + length_) * row_bytes_);
  each_head([&](int64_t side, int64_t head) {
    std::memcpy(row(side, head, 0), from.row(side, head, 0), bytes);
  });
}

}  // namespace bita
