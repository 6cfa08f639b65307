#include "cuda_device.h"

#include <algorithm>
#include <cstring>

#include "../base/fault.h"
#include "../operators/ort.h"

namespace bita {

namespace {

constexpr int kAnyDirection = 4;  // cudaMemcpyDefault
constexpr unsigned kNonBlocking = 1;
constexpr int kRelaxed = 2;  // cudaStreamCaptureModeRelaxed
constexpr const char* kNotCaptured = "-1";

std::string megabytes(size_t num_bytes) { return std::to_string((num_bytes + 500000) / 1000000); }

// The first line of ONNX Runtime's message, without its source location.
std::string reason_of(const std::string& message) {
  constexpr const char* kBegin = " : FAIL : ";
  const std::string line = message.substr(0, message.find('\n'));
  const size_t begin = line.find(kBegin);
  return begin == std::string::npos ? line : line.substr(begin + std::strlen(kBegin));
}

}  // namespace

// Makes our device current for this thread. Another engine's thread may be capturing a graph
// meanwhile: calls that allocate memory or wait are allowed during that.
class CudaDevice::Current {
 public:
  explicit Current(const CudaDevice& device) : device_(device) {
    const CudaCalls& cuda = device.cuda_;
    cuda.cudaGetDevice(&before_);
    if (before_ != device.settings_.device) {
      device.library_.check(cuda.cudaSetDevice(device.settings_.device), "cudaSetDevice");
    }
    cuda.cudaThreadExchangeStreamCaptureMode(&mode_);
  }
  ~Current() {
    const CudaCalls& cuda = device_.cuda_;
    cuda.cudaThreadExchangeStreamCaptureMode(&mode_);
    int now = before_;
    cuda.cudaGetDevice(&now);
    if (now != before_) cuda.cudaSetDevice(before_);
  }
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;

 private:
  const CudaDevice& device_;
  int before_ = 0, mode_ = kRelaxed;
};

CudaDevice::CudaDevice(const CudaSettings& settings)
    : library_(settings.library), cuda_(library_.calls()), settings_(settings) {
  check_devices();
  const Current current(*this);
  library_.check(cuda_.cudaStreamCreateWithFlags(&stream_, kNonBlocking),
                 "cudaStreamCreateWithFlags");
}

CudaDevice::~CudaDevice() {
  try {
    const Current current(*this);
    cuda_.cudaStreamDestroy(stream_);
  } catch (const Fault&) {  // the device and its stream are lost
    stream_ = nullptr;
  }
}

void CudaDevice::check_devices() const {
  int count = 0;
  const int status = cuda_.cudaGetDeviceCount(&count);
  if (status) {
    throw Fault(FaultKind::kSystem,
                "no CUDA device: " + library_.reason(status) + "; driver for CUDA " +
                    library_.driver_version() + ", runtime " + library_.runtime_version() +
                    ": install or update the driver, or run the engine on the CPU: backend "
                    "\"ort-cpu\"");
  }
  if (settings_.device < 0 || settings_.device >= count) {
    throw Fault(FaultKind::kUse, "there is no CUDA device " + std::to_string(settings_.device) +
                                     "; there are " + std::to_string(count));
  }
}

CudaDevice::Memory CudaDevice::memory() const {
  Memory found;
  library_.check(cuda_.cudaMemGetInfo(&found.free, &found.total), "cudaMemGetInfo");
  return found;
}

void CudaDevice::count(int64_t num_bytes) {
  bytes_ += num_bytes;
  peak_bytes_ = std::max(peak_bytes_.load(), bytes_.load());
}

void CudaDevice::refuse_memory(size_t num_bytes) const {
  const auto [free, total] = memory();
  throw Fault(FaultKind::kSystem,
              "the GPU has no " + megabytes(num_bytes) + " MB free: " + megabytes(free) + " of " +
                  megabytes(total) +
                  " MB are; end other programs there, or build with a smaller CAPACITY or "
                  "PRECISION");
}

void* CudaDevice::allocate(size_t num_bytes) {
  const Current current(*this);
  void* address = nullptr;
  const int status = cuda_.cudaMalloc(&address, num_bytes);
  if (status == kCudaOutOfMemory) {
    cuda_.cudaGetLastError();
    refuse_memory(num_bytes);
  }
  library_.check(status, "cudaMalloc");
  const int filled = cuda_.cudaMemsetAsync(address, 0, num_bytes, stream_);
  if (filled) cuda_.cudaFree(address);
  library_.check(filled, "cudaMemsetAsync");
  count(static_cast<int64_t>(num_bytes));
  return address;
}

void CudaDevice::release(void* address, size_t num_bytes) noexcept {
  try {
    const Current current(*this);
    if (cuda_.cudaFree(address)) cuda_.cudaGetLastError();
    count(-static_cast<int64_t>(num_bytes));
  } catch (const std::exception&) {  // the device and its memory are lost
    return;
  }
}

void* CudaDevice::allocate_host(size_t num_bytes) {
  const Current current(*this);
  void* address = nullptr;
  library_.check(cuda_.cudaMallocHost(&address, num_bytes), "cudaMallocHost");
  std::memset(address, 0, num_bytes);
  return address;
}

void CudaDevice::release_host(void* address, size_t) noexcept {
  try {
    const Current current(*this);
    if (cuda_.cudaFreeHost(address)) cuda_.cudaGetLastError();
  } catch (const std::exception&) {
    return;
  }
}

void CudaDevice::copy(void* target, const void* source, size_t num_bytes) {
  const Current current(*this);
  library_.check(cuda_.cudaMemcpyAsync(target, source, num_bytes, kAnyDirection, stream_),
                 "cudaMemcpyAsync");
}

void CudaDevice::copy_rows(void* target, size_t target_pitch, const void* source,
                           size_t source_pitch, size_t width, size_t height) {
  const Current current(*this);
  library_.check(cuda_.cudaMemcpy2DAsync(target, target_pitch, source, source_pitch, width, height,
                                         kAnyDirection, stream_),
                 "cudaMemcpy2DAsync");
}

void CudaDevice::wait() {
  const Current current(*this);
  library_.check(cuda_.cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
}

// Kernels run in our stream, and float32 products keep full precision.
void CudaDevice::add_provider(OrtSessionOptions* options, const std::string& engine) {
  const OrtApi& api = ort();
  try {
    OrtCUDAProviderOptionsV2* created = nullptr;
    check(api.CreateCUDAProviderOptions(&created));
    const OrtPointer<OrtCUDAProviderOptionsV2> provider(created);
    const std::string device = std::to_string(settings_.device);
    const char* const names[] = {"device_id", "use_tf32", "enable_cuda_graph"};
    const char* const values[] = {device.c_str(), "0", settings_.captures_graphs ? "1" : "0"};
    check(api.UpdateCUDAProviderOptions(created, names, values, std::size(names)));
    check(api.UpdateCUDAProviderOptionsWithValue(created, "user_compute_stream", stream_));
    const Current current(*this);
    check(api.SessionOptionsAppendExecutionProvider_CUDA_V2(options, created));
  } catch (const Fault&) {
    throw;
  } catch (const std::runtime_error& error) {
    throw Fault(FaultKind::kSystem,
                "engine " + engine +
                    " needs ONNX Runtime's CUDA provider, which cannot be loaded (" +
                    reason_of(error.what()) +
                    "): install onnxruntime-gpu (its release archive, or the Python package), with "
                    "CUDA and cuDNN where the loader finds them (LD_LIBRARY_PATH, ldconfig), or "
                    "run the engine on the CPU: backend \"ort-cpu\"");
  }
}

OrtStatus* CudaDevice::create_session(const OrtEnv* environment, const char* path,
                                      const OrtSessionOptions* options, OrtSession** session) {
  const Current current(*this);
  const auto before = static_cast<int64_t>(memory().free);
  OrtStatus* status = ort().CreateSession(environment, path, options, session);
  session_bytes_ = std::max<int64_t>(before - static_cast<int64_t>(memory().free), 0);
  return status;
}

// Every captured graph has its own number. Results are waited for only once, after their copy.
OrtPointer<OrtRunOptions> CudaDevice::run_options(bool captures) {
  OrtRunOptions* created = nullptr;
  check(ort().CreateRunOptions(&created));
  OrtPointer<OrtRunOptions> options(created);
  if (settings_.captures_graphs) {
    const std::string number = captures ? std::to_string(num_graphs_++) : kNotCaptured;
    check(ort().AddRunConfigEntry(created, "gpu_graph_id", number.c_str()));
  }
  check(ort().AddRunConfigEntry(created, "disable_synchronize_execution_providers", "1"));
  return options;
}

OrtStatus* CudaDevice::run(OrtSession* session, const OrtRunOptions* options,
                           const OrtIoBinding* binding) {
  const Current current(*this);
  return ort().RunWithBinding(session, options, binding);
}

OrtPointer<OrtMemoryInfo> CudaDevice::memory_info() const {
  OrtMemoryInfo* info = nullptr;
  check(ort().CreateMemoryInfo("Cuda", OrtDeviceAllocator, settings_.device, OrtMemTypeDefault,
                               &info));
  return OrtPointer<OrtMemoryInfo>(info);
}

}  // namespace bita
