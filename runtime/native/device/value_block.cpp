#include "value_block.h"

#include <algorithm>
#include <stdexcept>

namespace bita {

namespace {

constexpr size_t kBlockAlignment = 256;  // GPU kernels read with wide loads

}  // namespace

size_t element_bytes(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL:
      return 1;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
      return 2;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
      return 4;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
      return 8;
    default:
      throw std::logic_error("no step has values of type " + std::to_string(type));
  }
}

int64_t num_elements(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return count;
}

ValueBlock::~ValueBlock() {
  if (host_ && !device_.is_host()) device_.release_host(host_, num_bytes_);
}

size_t ValueBlock::add(const char* name, std::vector<int64_t> shape,
                       ONNXTensorElementDataType type) {
  const size_t num_bytes = static_cast<size_t>(num_elements(shape)) * element_bytes(type);
  entries_.push_back({name, std::move(shape), type, num_bytes_, num_bytes, nullptr});
  num_bytes_ +=
      (std::max<size_t>(num_bytes, 1) + kBlockAlignment - 1) / kBlockAlignment * kBlockAlignment;
  return entries_.size() - 1;
}

void ValueBlock::allocate() {
  num_bytes_ = std::max(num_bytes_, kBlockAlignment);
  memory_ = std::make_unique<DeviceMemory>(device_, num_bytes_);
  host_ = device_.is_host() ? memory_->address()
                            : static_cast<uint8_t*>(device_.allocate_host(num_bytes_));
  for (Entry& entry : entries_) {
    entry.value =
        device_.tensor(memory_->address() + entry.offset, entry.num_bytes, entry.shape, entry.type);
  }
}

void ValueBlock::upload() {
  if (!device_.is_host()) device_.copy(memory_->address(), host_, num_bytes_);
}

void ValueBlock::download() {
  if (!device_.is_host()) device_.copy(host_, memory_->address(), num_bytes_);
}

}  // namespace bita
