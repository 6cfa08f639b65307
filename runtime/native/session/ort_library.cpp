#include "ort_library.h"

#include <dlfcn.h>

#include <filesystem>
#include <mutex>
#include <vector>

#include "../base/fault.h"
#include "../operators/ort.h"

namespace bita {

namespace {

namespace fs = std::filesystem;

// By its own name, and by what Debian calls it.
constexpr const char* kNames[] = {"libonnxruntime.so.1", "libonnxruntime.so.1.21",
                                  "libonnxruntime.so"};

std::mutex mutex;
OrtLibrary opened;

// Libraries of the Python package onnxruntime, where this one lies in bita's package.
std::vector<std::string> beside_package() {
  Dl_info own = {};
  if (!dladdr(reinterpret_cast<void*>(&ort_version), &own) || !own.dli_fname) return {};
  std::error_code ignored;
  const fs::path folder = fs::weakly_canonical(own.dli_fname, ignored).parent_path();
  const fs::path packages = folder.parent_path().parent_path().parent_path();
  std::vector<std::string> found;
  for (const auto& entry : fs::directory_iterator(packages / "onnxruntime" / "capi", ignored)) {
    const std::string name = entry.path().filename().string();
    if (name.rfind("libonnxruntime.so", 0) == 0) found.push_back(entry.path().string());
  }
  return found;
}

// A handle, which stays open to the end of the process: kernels may run when the last engine is
// freed by another thread.
void* open_first(const std::vector<std::string>& names, std::string& reasons) {
  for (const std::string& name : names) {
    if (void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL)) return handle;
    const char* reason = dlerror();
    reasons += (reasons.empty() ? "" : "; ") + std::string(reason ? reason : name);
  }
  return nullptr;
}

OrtLibrary open_library(const std::string& path) {
  std::vector<std::string> names = {path};
  if (path.empty()) {
    names = beside_package();
    names.insert(names.begin(), std::begin(kNames), std::end(kNames));
  }
  std::string reasons;
  void* handle = open_first(names, reasons);
  if (!handle) {
    throw Fault(FaultKind::kSystem,
                "ONNX Runtime's library cannot be opened (" + reasons +
                    "); install it (its release archive for this system, or pip install "
                    "onnxruntime), and let the loader find it (LD_LIBRARY_PATH, ldconfig), or give "
                    "its file as onnxruntime_path");
  }
  using GetBase = const OrtApiBase*(ORT_API_CALL*)();
  const auto get_base = reinterpret_cast<GetBase>(dlsym(handle, "OrtGetApiBase"));
  OrtLibrary library;
  library.base = get_base ? get_base() : nullptr;
  if (!library.base) {
    throw Fault(FaultKind::kSystem, names.front() +
                                        " is no library of ONNX Runtime; give the "
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
