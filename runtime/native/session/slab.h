// Memory for the rows of one text, where operators other than the native ones keep them.
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

// Keys and values of all layers, [2L, H, C, D]: layer l's keys at 2l, its values at 2l + 1.
class Slab {
 public:
  // type: float32 or float16. Throws a Fault if there is no memory.
  Slab(Device& device, const Manifest& manifest, ONNXTensorElementDataType type);

  // Each slab has another number.
  uint64_t number() const { return number_; }
  ONNXTensorElementDataType type() const { return type_; }
  // The caches by their names in a graph, past and present being the same.
  const std::vector<std::pair<std::string, OrtPointer<OrtValue>>>& values() const {
    return values_;
  }

  // Copy rows [2L, H, n, D] into the slots from `first` on.
  void write(int64_t first, const void* rows, int64_t num_rows);
  // The same for rows of the host that need not live longer.
  void put(int64_t first, const void* rows, int64_t num_rows);
  void move(int64_t source, int64_t target);
  // Copy the first slots of another slab of the same engine.
  void take(const Slab& other, int64_t num_slots);
  // Slots from here on were never written.
  void note_written(int64_t num_slots);
  // Make zeros of the first slots, and of those from `end` on that were written.
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

// The slabs of an engine's texts. On a GPU their number is limited and they are reused rather than
// freed, since a captured graph knows the address of the slab that it was captured with.
class SlabPool {
 public:
  // extra_bytes: of GPU memory for more slabs than one.
  SlabPool(Device& device, const Manifest& manifest, ONNXTensorElementDataType type,
           int64_t extra_bytes);

  // Whether a text can have a slab; allocates it on a GPU. Throws a Fault if there is no memory for
  // the first.
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
