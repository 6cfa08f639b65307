// ONNX Runtime's library, loaded when the first engine is opened.
#pragma once

#include <onnxruntime_c_api.h>

#include <string>

namespace bita {

struct OrtLibrary {
  const OrtApiBase* base = nullptr;
  const OrtApi* api = nullptr;
  std::string version;
};

// The library at `path`. If that is empty: the one that the process has loaded, the system's, or
// that of the Python package next to this library. The first that is opened serves the whole
// process. Throws a Fault that lists where it searched and how to fix it.
const OrtLibrary& ort_library(const std::string& path);

// The version of the opened library; empty before.
std::string ort_version();

}  // namespace bita
