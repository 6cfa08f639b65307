// The API that the stand-in for ONNX Runtime gives to operators.
#pragma once

#include <onnxruntime_c_api.h>

#include <cstdint>
#include <functional>

namespace bita::tests {

// The number of threads of a loop, and the order in which they take its indices.
struct Threads {
  int count = 1;
  uint32_t order = 0;  // a seed; 0 for ascending
  std::function<void(int)> begin =
      {};  // each thread calls it first, with its number, counted from 0
};

// All functions that operators call.
const OrtApi& host_api();
// Base of the API; one that is too old for the library returns no API.
const OrtApiBase* api_base(bool is_too_old = false);

// Statuses and shapes that were created and not yet released.
int num_unreleased();

}  // namespace bita::tests
