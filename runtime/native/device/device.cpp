#include "device.h"

#include "../operators/ort.h"

namespace bita {

OrtPointer<OrtValue> Device::tensor(void* data, size_t num_bytes, const std::vector<int64_t>& shape,
                                    ONNXTensorElementDataType type) const {
  static char nothing;  // address for tensors without elements
  const OrtPointer<OrtMemoryInfo> info = memory_info();
  OrtValue* value = nullptr;
  check(ort().CreateTensorWithDataAsOrtValue(info.get(), data ? data : &nothing, num_bytes,
                                             shape.data(), shape.size(), type, &value));
  return OrtPointer<OrtValue>(value);
}

}  // namespace bita
