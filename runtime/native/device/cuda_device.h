// Steps on a GPU, run by ONNX Runtime's CUDA provider, whose kernels share one stream with our
// copies.
#pragma once

#include <atomic>
#include <string>

#include "cuda_library.h"
#include "device.h"

namespace bita {

struct CudaSettings {
  int device = 0;
  bool captures_graphs = true;  // capture decode steps as CUDA graphs, launched as a whole
  std::string library;          // path of libcudart; empty to search for it
};

// Threads may have another CUDA device current; each call restores it.
class CudaDevice : public Device {
 public:
  // Throws a Fault if there is no library, no driver or no such device.
  explicit CudaDevice(const CudaSettings& settings);
  ~CudaDevice() override;

  bool is_host() const override { return false; }
  int64_t peak_bytes() const override { return peak_bytes_ + session_bytes_; }

  void* allocate(size_t num_bytes) override;
  void release(void* address, size_t num_bytes) noexcept override;
  void* allocate_host(size_t num_bytes) override;
  void release_host(void* address, size_t num_bytes) noexcept override;
  void copy(void* target, const void* source, size_t num_bytes) override;
  void copy_rows(void* target, size_t target_pitch, const void* source, size_t source_pitch,
                 size_t width, size_t height) override;
  void wait() override;

  void add_provider(OrtSessionOptions* options, const std::string& engine) override;
  OrtStatus* create_session(const OrtEnv* environment, const char* path,
                            const OrtSessionOptions* options, OrtSession** session) override;
  OrtPointer<OrtRunOptions> run_options(bool captures) override;
  OrtStatus* run(OrtSession* session, const OrtRunOptions* options,
                 const OrtIoBinding* binding) override;

 protected:
  OrtPointer<OrtMemoryInfo> memory_info() const override;

 private:
  class Current;
  struct Memory {
    size_t free = 0, total = 0;  // bytes
  };

  void check_devices() const;
  Memory memory() const;
  void count(int64_t num_bytes);
  [[noreturn]] void refuse_memory(size_t num_bytes) const;

  const CudaLibrary library_;
  const CudaCalls& cuda_;
  const CudaSettings settings_;
  CudaStream stream_ = nullptr;
  std::atomic<int64_t> num_graphs_{0};
  std::atomic<int64_t> bytes_{0}, peak_bytes_{0}, session_bytes_{0};
};

}  // namespace bita
