// ONNX Runtime's library, opened when the first engine is.
#pragma once

#include <onnxruntime_c_api.h>

#include <string>

namespace bita {

struct OrtLibrary {
  const OrtApiBase* base = nullptr;
  const OrtApi* api = nullptr;
  std::string version;
};

// The library at `path`, or for an empty path the one that the process has, the system's, or the
// one of the Python package beside this library. The first that is opened serves the process.
// Throws a Fault that says where it was looked for, and what to do.
const OrtLibrary& ort_library(const std::string& path);

// The version of the library that was opened; empty before.
std::string ort_version();

}  // namespace bita
