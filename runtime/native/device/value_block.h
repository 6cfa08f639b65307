// Inputs or outputs of a step in one block of memory, so that a single copy transfers all of them
// between the host's memory and the graph's. On a CPU these are the same memory.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "device.h"

namespace bita {

class ValueBlock {
 public:
  explicit ValueBlock(Device& device) : device_(device) {}
  ~ValueBlock();
  ValueBlock(const ValueBlock&) = delete;
  ValueBlock& operator=(const ValueBlock&) = delete;

  // Add a value by its name in the graph, before memory is allocated. Returns its number.
  size_t add(const char* name, std::vector<int64_t> shape, ONNXTensorElementDataType type);
  // Allocate memory for all values, zeroed. Throws a Fault.
  void allocate();

  size_t size() const { return entries_.size(); }
  const char* name(size_t number) const { return entries_[number].name; }
  OrtValue* value(size_t number) const { return entries_[number].value.get(); }
  // The address at which the host writes and reads a value.
  template <class T>
  T* host(size_t number) const {
    return reinterpret_cast<T*>(host_ + entries_[number].offset);
  }

  // Copy all values to the graph's memory, or back. No copy if that is host memory.
  void upload();
  void download();

 private:
  struct Entry {
    const char* name;
    std::vector<int64_t> shape;
    ONNXTensorElementDataType type;
    size_t offset, num_bytes;
    OrtPointer<OrtValue> value;
  };

  Device& device_;
  std::vector<Entry> entries_;
  size_t num_bytes_ = 0;
  uint8_t* host_ = nullptr;
  std::unique_ptr<DeviceMemory> memory_;
};

// Size of an element in bytes. Throws std::logic_error for a type that no step uses.
size_t element_bytes(ONNXTensorElementDataType type);

int64_t num_elements(const std::vector<int64_t>& shape);

}  // namespace bita
