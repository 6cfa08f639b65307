#include "ort_library.h"

#include <dlfcn.h>

#include <filesystem>
#include <mutex>
#include <vector>

#include "../base/fault.h"
#include "../base/shared_library.h"
#include "../operators/ort.h"

namespace bita {

namespace {

namespace fs = std::filesystem;

// The library's own name, and Debian's.
constexpr const char* kNames[] = {"libonnxruntime.so.1", "libonnxruntime.so.1.21",
                                  "libonnxruntime.so"};

std::mutex mutex;
OrtLibrary opened;

// Libraries in the Python package onnxruntime that is installed next to bita's.
std::vector<std::string> find_in_package() {
  std::error_code ignored;
  std::vector<std::string> found;
  const fs::path folder = packages_folder() / "onnxruntime" / "capi";
  for (const auto& entry : fs::directory_iterator(folder, ignored)) {
    const std::string name = entry.path().filename().string();
    if (name.rfind("libonnxruntime.so", 0) == 0) found.push_back(entry.path().string());
  }
  return found;
}

OrtLibrary open_library(const std::string& path) {
  std::vector<std::string> names = {path};
  if (path.empty()) {
    names = find_in_package();
    names.insert(names.begin(), std::begin(kNames), std::end(kNames));
  }
  const SharedLibrary opening = open_first(names);
  if (!opening.handle) {
    throw Fault(FaultKind::kSystem,
                "ONNX Runtime's library cannot be opened (" + opening.reasons +
                    "); install it (its release archive for this system, or pip install "
                    "onnxruntime), and let the loader find it (LD_LIBRARY_PATH, ldconfig), or give "
                    "its file as onnxruntime_path");
  }
  using GetBase = const OrtApiBase*(ORT_API_CALL*)();
  const auto get_base = reinterpret_cast<GetBase>(dlsym(opening.handle, "OrtGetApiBase"));
  OrtLibrary library;
  library.base = get_base ? get_base() : nullptr;
  if (!library.base) {
    throw Fault(FaultKind::kSystem, opening.name +
                                        " is not an ONNX Runtime library; give the "
                                        "file of one as onnxruntime_path");
  }
  library.version = library.base->GetVersionString();
  library.api = library.base->GetApi(BITA_ORT_API_VERSION);
  if (!library.api) {
    throw Fault(FaultKind::kSystem, "ONNX Runtime " + library.version + " is too old; 1." +
                                        std::to_string(BITA_ORT_API_VERSION) +
                                        " or later is needed");
  }
  return library;
}

}  // namespace

const OrtLibrary& ort_library(const std::string& path) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (!opened.api) {
    opened = open_library(path);
    set_ort(opened.api);
  }
  return opened;
}

std::string ort_version() {
  const std::lock_guard<std::mutex> lock(mutex);
  return opened.version;
}

}  // namespace bita
