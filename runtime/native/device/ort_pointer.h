// ONNX Runtime objects that their owner releases.
#pragma once

#include <onnxruntime_c_api.h>

#include <memory>

namespace bita {

template <class T>
struct OrtRelease {
  void operator()(T* object) const;
};
template <class T>
using OrtPointer = std::unique_ptr<T, OrtRelease<T>>;

}  // namespace bita
