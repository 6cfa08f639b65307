// Memory for the rows of one text, with operators other than the native ones.
#pragma once

#include <onnxruntime_c_api.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../device/device.h"
#include "../engine/manifest.h"

namespace bita {

// Keys and values of all layers, [2L, H, C, D]: layer l's keys are at 2l, its values at 2l + 1.
class Slab {
 public:
  // type: float32 or float16. Throws a Fault if there is no memory.
  Slab(Device& device, const Manifest& manifest, ONNXTensorElementDataType type);

  // A unique number of the slab.
  uint64_t number() const { return number_; }
  ONNXTensorElementDataType type() const { return type_; }
  // The caches by their names in a graph; past and present are the same memory.
  const std::vector<std::pair<std::string, OrtPointer<OrtValue>>>& values() const {
    return values_;
  }

  // Copy rows [2L, H, n, D] into the slots starting at `first`.
  void write(int64_t first, const void* rows, int64_t num_rows);
  // Like `write`, for rows in host memory that the caller may free afterwards.
  void put(int64_t first, const void* rows, int64_t num_rows);
  void move(int64_t source, int64_t target);
  // Copy the first slots of another slab of the same engine.
  void take(const Slab& other, int64_t num_slots);
  // Record that the first `num_slots` slots may have been written, and no others.
  void note_written(int64_t num_slots);
  // Zero the first slots, and those from `end` that were written.
  void clear_around(int64_t num_first, int64_t end);

 private:
  uint8_t* slot(int64_t number) const { return memory_->address() + number * row_bytes_; }
  void clear(int64_t first, int64_t end);

  Device& device_;
  const int64_t num_heads_, capacity_, row_bytes_;  // heads of the keys and values of all layers
  const ONNXTensorElementDataType type_;
  const uint64_t number_;
  int64_t num_written_ = 0;
  std::unique_ptr<DeviceMemory> memory_;
  std::vector<std::pair<std::string, OrtPointer<OrtValue>>> values_;
};

// The slabs of an engine's texts. On a GPU their number is limited, and they are reused rather than
// freed, since a captured graph contains the address of its slab.
class SlabPool {
 public:
  // extra_bytes: GPU memory for more than one slab.
  SlabPool(Device& device, const Manifest& manifest, ONNXTensorElementDataType type,
           int64_t extra_bytes);

  // Whether a slab is available for a text; allocates one on a GPU. Throws a Fault if there is no
  // memory for the first.
  bool has_free();
  std::unique_ptr<Slab> take();
  void give_back(std::unique_ptr<Slab> slab);
  const Manifest& manifest() const { return manifest_; }

 private:
  Device& device_;
  const Manifest& manifest_;
  const ONNXTensorElementDataType type_;
  int64_t max_slabs_, num_slabs_ = 0;  // on a GPU
  std::vector<std::unique_ptr<Slab>> free_;
};

}  // namespace bita
