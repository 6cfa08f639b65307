// The CUDA runtime calls that decoding needs, from a libcudart that is loaded when the first engine
// for a GPU is opened. CUDA 12 and later.
#pragma once

#include <cstddef>
#include <string>

namespace bita {

using CudaStream = struct CUstream_st*;

struct CudaCalls {
  int (*cudaGetDeviceCount)(int* count);
  int (*cudaGetDevice)(int* device);
  int (*cudaSetDevice)(int device);
  int (*cudaThreadExchangeStreamCaptureMode)(int* mode);
  int (*cudaRuntimeGetVersion)(int* version);
  int (*cudaDriverGetVersion)(int* version);
  int (*cudaMemGetInfo)(size_t* free_bytes, size_t* total);
  int (*cudaMalloc)(void** address, size_t num_bytes);
  int (*cudaFree)(void* address);
  int (*cudaMallocHost)(void** address, size_t num_bytes);
  int (*cudaFreeHost)(void* address);
  int (*cudaMemsetAsync)(void* target, int value, size_t num_bytes, CudaStream stream);
  int (*cudaMemcpyAsync)(void* target, const void* source, size_t num_bytes, int direction,
                         CudaStream stream);
  int (*cudaMemcpy2DAsync)(void* target, size_t target_pitch, const void* source,
                           size_t source_pitch, size_t width, size_t height, int direction,
                           CudaStream stream);
  int (*cudaStreamCreateWithFlags)(CudaStream* stream, unsigned flags);
  int (*cudaStreamDestroy)(CudaStream stream);
  int (*cudaStreamSynchronize)(CudaStream stream);
  int (*cudaGetLastError)();
  const char* (*cudaGetErrorName)(int status);
  const char* (*cudaGetErrorString)(int status);
};

constexpr int kCudaOutOfMemory = 2;

class CudaLibrary {
 public:
  // path: the library's file; empty to search for it. Throws a Fault that lists where it searched.
  explicit CudaLibrary(const std::string& path);

  const CudaCalls& calls() const { return calls_; }
  // Throws a Fault that names the call and CUDA's reason, unless the status is 0.
  void check(int status, const char* call) const;
  // Describe a status, and clear CUDA's last error so that other libraries do not mistake it for
  // theirs.
  std::string reason(int status) const;
  std::string runtime_version() const;  // "13.0"
  std::string driver_version() const;   // the latest CUDA it supports; "0.0" without a driver

 private:
  CudaCalls calls_{};
};

}  // namespace bita
