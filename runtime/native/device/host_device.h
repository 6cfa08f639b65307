// Steps on a CPU, which uses host memory.
#pragma once

#include "device.h"

namespace bita {

class HostDevice : public Device {
 public:
  bool is_host() const override { return true; }
  // Large blocks take memory page by page, when they are written.
  void* allocate(size_t num_bytes) override;
  void release(void* address, size_t num_bytes) noexcept override;
  void* allocate_host(size_t num_bytes) override { return allocate(num_bytes); }
  void release_host(void* address, size_t num_bytes) noexcept override {
    release(address, num_bytes);
  }
  void copy(void* target, const void* source, size_t num_bytes) override;
  void copy_rows(void* target, size_t target_pitch, const void* source, size_t source_pitch,
                 size_t width, size_t height) override;
  void wait() override {}

  void add_provider(OrtSessionOptions*, const std::string&) override {
  }  // the CPU provider is always present
  OrtStatus* create_session(const OrtEnv* environment, const char* path,
                            const OrtSessionOptions* options, OrtSession** session) override;
  OrtPointer<OrtRunOptions> run_options(bool) override { return nullptr; }
  OrtStatus* run(OrtSession* session, const OrtRunOptions* options,
                 const OrtIoBinding* binding) override;

 protected:
  OrtPointer<OrtMemoryInfo> memory_info() const override;
};

}  // namespace bita
