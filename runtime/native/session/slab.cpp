#include "slab.h"

#include <algorithm>
#include <atomic>
#include <new>

#include "../base/fault.h"
#include "../device/value_block.h"

namespace bita {

namespace {

constexpr int64_t kClearedSlots = 256;  // at a time; limits the host memory needed

std::atomic<uint64_t> next_number{1};

std::unique_ptr<DeviceMemory> slab_memory(Device& device, size_t num_bytes, int64_t capacity) {
  try {
    return std::make_unique<DeviceMemory>(device, num_bytes);
  } catch (const std::bad_alloc&) {
    throw Fault(FaultKind::kEngine,
                "a cache of " + std::to_string(num_bytes / 1000000000 + 1) + " GB, for " +
                    std::to_string(capacity) +
                    " slots, cannot be allocated; rebuild the engine with a smaller --capacity");
  }
}

int64_t slab_bytes(const Manifest& manifest, ONNXTensorElementDataType type) {
  return 2 * manifest.num_layers * manifest.num_kv_heads * manifest.capacity * manifest.head_dim *
         static_cast<int64_t>(element_bytes(type));
}

}  // namespace

Slab::Slab(Device& device, const Manifest& manifest, ONNXTensorElementDataType type)
    : device_(device),
      num_heads_(2 * manifest.num_layers * manifest.num_kv_heads),
      capacity_(manifest.capacity),
      row_bytes_(manifest.head_dim * static_cast<int64_t>(element_bytes(type))),
      type_(type),
      number_(next_number++),
      memory_(slab_memory(device, static_cast<size_t>(slab_bytes(manifest, type)), capacity_)) {
  const auto side_bytes = static_cast<size_t>(manifest.num_kv_heads * capacity_ * row_bytes_);
  for (size_t side = 0; side < static_cast<size_t>(2 * manifest.num_layers); ++side) {
    const std::string name = std::to_string(side / 2) + (side % 2 ? ".value" : ".key");
    values_.emplace_back(
        name, device.tensor(memory_->address() + side * side_bytes, side_bytes,
                            {1, manifest.num_kv_heads, capacity_, manifest.head_dim}, type));
  }
}

void Slab::write(int64_t first, const void* rows, int64_t num_rows) {
  const auto width = static_cast<size_t>(num_rows * row_bytes_);
  if (!width) return;
  device_.copy_rows(slot(first), static_cast<size_t>(capacity_ * row_bytes_), rows, width, width,
                    static_cast<size_t>(num_heads_));
}

void Slab::put(int64_t first, const void* rows, int64_t num_rows) {
  write(first, rows, num_rows);
  device_.wait();
}

void Slab::move(int64_t source, int64_t target) {
  const auto pitch = static_cast<size_t>(capacity_ * row_bytes_);
  device_.copy_rows(slot(target), pitch, slot(source), pitch, static_cast<size_t>(row_bytes_),
                    static_cast<size_t>(num_heads_));
}

void Slab::take(const Slab& other, int64_t num_slots) {
  const auto pitch = static_cast<size_t>(capacity_ * row_bytes_);
  device_.copy_rows(slot(0), pitch, other.slot(0), pitch,
                    static_cast<size_t>(num_slots * row_bytes_), static_cast<size_t>(num_heads_));
  note_written(num_slots);
}

void Slab::note_written(int64_t num_slots) { num_written_ = std::max(num_written_, num_slots); }

void Slab::clear_around(int64_t num_first, int64_t end) {
  clear(0, num_first);
  clear(end, num_written_);
  num_written_ = std::min(num_written_, end);
}

void Slab::clear(int64_t first, int64_t end) {
  const std::vector<uint8_t> zeros(static_cast<size_t>(
      std::clamp<int64_t>(end - first, 0, kClearedSlots) * row_bytes_ * num_heads_));
  for (; first < end; first += kClearedSlots) {
    put(first, zeros.data(), std::min(end - first, kClearedSlots));
  }
}

SlabPool::SlabPool(Device& device, const Manifest& manifest, ONNXTensorElementDataType type,
                   int64_t extra_bytes)
    : device_(device),
      manifest_(manifest),
      type_(type),
      max_slabs_(1 + extra_bytes / slab_bytes(manifest, type)) {}

bool SlabPool::has_free() {
  if (device_.is_host() || !free_.empty()) return true;
  if (num_slabs_ == max_slabs_) return false;
  try {
    free_.push_back(std::make_unique<Slab>(device_, manifest_, type_));
  } catch (const Fault&) {
    if (!num_slabs_) throw;
    max_slabs_ = num_slabs_;  // texts share the existing ones in turn
    return false;
  }
  ++num_slabs_;
  return true;
}

std::unique_ptr<Slab> SlabPool::take() {
  if (device_.is_host()) return std::make_unique<Slab>(device_, manifest_, type_);
  if (!has_free()) {
    throw Fault(FaultKind::kSystem, "all caches on the GPU are in use; give more cache_bytes");
  }
  std::unique_ptr<Slab> slab = std::move(free_.back());
  free_.pop_back();
  return slab;
}

void SlabPool::give_back(std::unique_ptr<Slab> slab) {
  if (slab && !device_.is_host()) free_.push_back(std::move(slab));
}

}  // namespace bita
