#include "held_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "../base/fault.h"
#include "../base/sha256.h"

namespace bita {

namespace {

int64_t nanoseconds(const timespec& time) {
  return static_cast<int64_t>(time.tv_sec) * 1000000000 + time.tv_nsec;
}

}  // namespace

HeldFile::HeldFile(std::filesystem::path path, std::string digest)
    : path_(std::move(path)),
      digest_(std::move(digest)),
      descriptor_(open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
  if (descriptor_ < 0) {
    throw Fault(FaultKind::kEngine, path_.string() + " cannot be read (" + std::strerror(errno) +
                                        "); rebuild the engine");
  }
  seen_ = state();
}

HeldFile::~HeldFile() { close(descriptor_); }

void HeldFile::check_loaded() {
  struct stat there = {}, held = {};
  const bool is_same = stat(path_.c_str(), &there) == 0 && fstat(descriptor_, &held) == 0 &&
                       there.st_dev == held.st_dev && there.st_ino == held.st_ino;
  if (!is_same) {
    throw Fault(FaultKind::kEngine,
                path_.string() + " was changed while it was loaded; open the engine again");
  }
  check();
}

void HeldFile::check() {
  const State now = state();
  if (now == seen_) return;
  const std::string held = "/proc/self/fd/" + std::to_string(descriptor_);
  if (std::get<0>(now) != std::get<0>(seen_) || sha256_of_file(held) != digest_) {
    throw Fault(FaultKind::kEngine,
                path_.string() + " was changed while the engine was open; open the engine again");
  }
  seen_ = now;
}

HeldFile::State HeldFile::state() const {
  struct stat status = {};
  if (fstat(descriptor_, &status) != 0) return {};
  return {status.st_size, nanoseconds(status.st_mtim), nanoseconds(status.st_ctim)};
}

}  // namespace bita
