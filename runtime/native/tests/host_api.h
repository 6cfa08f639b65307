// The API that operators get from the stand-in for ONNX Runtime.
#pragma once

#include <onnxruntime_c_api.h>

#include <cstdint>
#include <functional>

namespace bita::tests {

// How many threads a loop has, and in which order they take its indices.
struct Threads {
  int count = 1;
  uint32_t order = 0;                   // a seed; 0 for ascending
  std::function<void(int)> begin = {};  // each calls it first, with its number from 0 on
};

// All functions that operators call.
const OrtApi& host_api();
// Base of the API; one that is too old for the library has no API.
const OrtApiBase* api_base(bool is_too_old = false);

// Statuses and shapes that were made and not yet released.
int num_unreleased();

}  // namespace bita::tests
