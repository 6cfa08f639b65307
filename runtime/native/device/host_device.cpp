#include "host_device.h"

#include <sys/mman.h>

#include <cstring>
#include <new>

#include "../operators/ort.h"

namespace bita {

namespace {

constexpr size_t kLarge = 1 << 20;
constexpr std::align_val_t kAlignment{64};

}  // namespace

void* HostDevice::allocate(size_t num_bytes) {
  if (num_bytes < kLarge) {
    void* place = operator new(num_bytes, kAlignment);
    std::memset(place, 0, num_bytes);
    return place;
  }
  void* place = mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (place == MAP_FAILED) throw std::bad_alloc();
  // with huge pages the first slot of each head in a cache would take 2 MB
  madvise(place, num_bytes, MADV_NOHUGEPAGE);
  return place;
}

void HostDevice::release(void* address, size_t num_bytes) noexcept {
  if (num_bytes < kLarge)
    operator delete(address, kAlignment);
  else
    munmap(address, num_bytes);
}

void HostDevice::copy(void* target, const void* source, size_t num_bytes) {
  std::memcpy(target, source, num_bytes);
}

void HostDevice::copy_rows(void* target, size_t target_pitch, const void* source,
                           size_t source_pitch, size_t width, size_t height) {
  auto* to = static_cast<uint8_t*>(target);
  const auto* from = static_cast<const uint8_t*>(source);
  for (size_t row = 0; row < height; ++row) {
    std::memcpy(to + row * target_pitch, from + row * source_pitch, width);
  }
}

OrtStatus* HostDevice::create_session(const OrtEnv* environment, const char* path,
                                      const OrtSessionOptions* options, OrtSession** session) {
  return ort().CreateSession(environment, path, options, session);
}

OrtStatus* HostDevice::run(OrtSession* session, const OrtRunOptions* options,
                           const OrtIoBinding* binding) {
  return ort().RunWithBinding(session, options, binding);
}

OrtPointer<OrtMemoryInfo> HostDevice::memory_info() const {
  OrtMemoryInfo* info = nullptr;
  check(ort().CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &info));
  return OrtPointer<OrtMemoryInfo>(info);
}

}  // namespace bita
