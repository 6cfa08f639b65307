// The device on which steps run: the memory that a graph reads and writes, and ONNX Runtime's
// provider.
#pragma once

#include <onnxruntime_c_api.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "ort_pointer.h"

namespace bita {

class Device {
 public:
  Device() = default;
  virtual ~Device() = default;
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  // Whether the graph uses host memory.
  virtual bool is_host() const = 0;
  // Peak GPU memory of this library and ONNX Runtime, in bytes.
  virtual int64_t peak_bytes() const { return 0; }

  // Allocate zeroed memory for the graph. Throws a Fault, or std::bad_alloc.
  virtual void* allocate(size_t num_bytes) = 0;
  virtual void release(void* address, size_t num_bytes) noexcept = 0;
  // Allocate zeroed host memory from which copies to the graph's memory are direct (pinned on a
  // GPU).
  virtual void* allocate_host(size_t num_bytes) = 0;
  virtual void release_host(void* address, size_t num_bytes) noexcept = 0;

  // Copy between the graph's memory and the host's, in any direction. Copies and steps execute in
  // order; all have finished when `wait` returns. Throws a Fault.
  virtual void copy(void* target, const void* source, size_t num_bytes) = 0;
  // Copy `height` pieces of `width` bytes; the pitches are the distances in bytes between their
  // starts.
  virtual void copy_rows(void* target, size_t target_pitch, const void* source, size_t source_pitch,
                         size_t width, size_t height) = 0;
  virtual void wait() = 0;

  // Create a tensor over graph memory, which must outlive it.
  OrtPointer<OrtValue> tensor(void* data, size_t num_bytes, const std::vector<int64_t>& shape,
                              ONNXTensorElementDataType type) const;
  // Make sessions with these options run here. engine: its path, for messages. Throws a Fault.
  virtual void add_provider(OrtSessionOptions* options, const std::string& engine) = 0;
  virtual OrtStatus* create_session(const OrtEnv* environment, const char* path,
                                    const OrtSessionOptions* options, OrtSession** session) = 0;
  // Options for running a step; may be null. captures: its inputs and outputs keep their addresses,
  // so that it can be captured as a graph and launched again.
  virtual OrtPointer<OrtRunOptions> run_options(bool captures) = 0;
  virtual OrtStatus* run(OrtSession* session, const OrtRunOptions* options,
                         const OrtIoBinding* binding) = 0;

 protected:
  virtual OrtPointer<OrtMemoryInfo> memory_info() const = 0;
};

// Graph memory of a device, released by the destructor.
class DeviceMemory {
 public:
  DeviceMemory(Device& device, size_t num_bytes)
      : device_(device), num_bytes_(num_bytes), address_(device.allocate(num_bytes)) {}
  ~DeviceMemory() { device_.release(address_, num_bytes_); }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  uint8_t* address() const { return static_cast<uint8_t*>(address_); }
  size_t num_bytes() const { return num_bytes_; }

 private:
  Device& device_;
  const size_t num_bytes_;
  void* const address_;
};

}  // namespace bita
