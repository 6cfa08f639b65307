#include "cuda_library.h"

#include <dlfcn.h>

#include <algorithm>
#include <filesystem>
#include <vector>

#include "../base/fault.h"
#include "../base/shared_library.h"

namespace bita {

namespace {

namespace fs = std::filesystem;

constexpr int kOldest = 12;  // CUDA version, which ONNX Runtime needs too
constexpr const char* kNames[] = {"libcudart.so.13", "libcudart.so.12"};  // searched by the loader
constexpr const char* kSystemPlaces[] = {
    "/usr/local/cuda/lib64", "/usr/local/cuda/targets/x86_64-linux/lib",
    "/usr/local/cuda/targets/aarch64-linux/lib", "/usr/local/cuda/targets/sbsa-linux/lib"};
constexpr const char* kPackagedPlaces[] = {"cu13/lib",
                                           "cuda_runtime/lib"};  // of CUDA 13, of CUDA 12
constexpr const char* kFix =
    "install CUDA's runtime (cuda-cudart of NVIDIA's packages, or pip install nvidia-cuda-runtime) "
    "and let the loader find it (LD_LIBRARY_PATH, ldconfig), or run the engine on the CPU: "
    "backend \"ort-cpu\"";

// Add libcudart.so.* of a folder, the newest first.
void add_libraries(const fs::path& folder, std::vector<std::string>& found) {
  std::error_code ignored;
  const size_t num_before = found.size();
  for (const auto& entry : fs::directory_iterator(folder, ignored)) {
    if (entry.path().filename().string().rfind("libcudart.so.", 0) == 0)
      found.push_back(entry.path().string());
  }
  std::sort(found.begin() + static_cast<std::ptrdiff_t>(num_before), found.end(), std::greater<>());
}

// Candidate names and paths: the loader's search path, pip packages next to this library if it is
// installed in bita's package, and a toolkit.
std::vector<std::string> candidates() {
  std::vector<std::string> found(std::begin(kNames), std::end(kNames));
  for (const char* place : kPackagedPlaces) {
    add_libraries(packages_folder() / "nvidia" / place, found);
  }
  for (const char* place : kSystemPlaces) add_libraries(place, found);
  found.emplace_back("libcudart.so");
  return found;
}

std::string join(const std::vector<std::string>& texts) {
  std::string all;
  for (const std::string& text : texts) all += (all.empty() ? "" : ", ") + text;
  return all;
}

template <class Function>
void find(void* handle, const std::string& library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(handle, name));
  if (!function)
    throw Fault(FaultKind::kSystem, library + " has no " + name + "; " + std::string(kFix));
}

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

}  // namespace

CudaLibrary::CudaLibrary(const std::string& path) {
  const std::vector<std::string> names =
      path.empty() ? candidates() : std::vector<std::string>{path};
  const SharedLibrary opened = open_first(names);
  if (!opened.handle) {
    throw Fault(FaultKind::kSystem,
                "no CUDA runtime library was found (searched " + join(names) + "); " + kFix);
  }
  const auto take = [&](const char* name, auto& function) {
    find(opened.handle, opened.name, name, function);
  };
#define BITA_TAKE(name) take(#name, calls_.name)
  BITA_TAKE(cudaGetDeviceCount);
  BITA_TAKE(cudaGetDevice);
  BITA_TAKE(cudaSetDevice);
  BITA_TAKE(cudaThreadExchangeStreamCaptureMode);
  BITA_TAKE(cudaRuntimeGetVersion);
  BITA_TAKE(cudaDriverGetVersion);
  BITA_TAKE(cudaMemGetInfo);
  BITA_TAKE(cudaMalloc);
  BITA_TAKE(cudaFree);
  BITA_TAKE(cudaMallocHost);
  BITA_TAKE(cudaFreeHost);
  BITA_TAKE(cudaMemsetAsync);
  BITA_TAKE(cudaMemcpyAsync);
  BITA_TAKE(cudaMemcpy2DAsync);
  BITA_TAKE(cudaStreamCreateWithFlags);
  BITA_TAKE(cudaStreamDestroy);
  BITA_TAKE(cudaStreamSynchronize);
  BITA_TAKE(cudaGetLastError);
  BITA_TAKE(cudaGetErrorName);
  BITA_TAKE(cudaGetErrorString);
#undef BITA_TAKE
  int version = 0;
  check(calls_.cudaRuntimeGetVersion(&version), "cudaRuntimeGetVersion");
  if (version / 1000 < kOldest) {
    throw Fault(FaultKind::kSystem, "the CUDA runtime " + opened.name + " is " +
                                        version_text(version) + ", but " + std::to_string(kOldest) +
                                        " or later is needed; " + kFix);
  }
}

void CudaLibrary::check(int status, const char* call) const {
  if (status) throw Fault(FaultKind::kSystem, std::string(call) + " failed: " + reason(status));
}

std::string CudaLibrary::reason(int status) const {
  calls_.cudaGetLastError();
  return std::string(calls_.cudaGetErrorName(status)) + " (" + std::to_string(status) + "), " +
         calls_.cudaGetErrorString(status);
}

std::string CudaLibrary::runtime_version() const {
  int version = 0;
  check(calls_.cudaRuntimeGetVersion(&version), "cudaRuntimeGetVersion");
  return version_text(version);
}

std::string CudaLibrary::driver_version() const {
  int version = 0;
  check(calls_.cudaDriverGetVersion(&version), "cudaDriverGetVersion");
  return version_text(version);
}

}  // namespace bita
