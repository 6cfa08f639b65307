#include "weight_memory.h"

#include <algorithm>
#include <utility>

#if defined(__linux__)
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <system_error>
#endif

namespace bita {
namespace {

// The session that a thread is creating: the memory for its weights, and its kernels so far.
struct SessionWeights {
  std::shared_ptr<WeightMemory> memory;
  std::vector<KernelWeights*> kernels;
};

// Null if there is none. A plain pointer, since kernels may be destroyed after other objects of
// their thread.
thread_local SessionWeights* session_of_thread = nullptr;

#if defined(__linux__)

constexpr int64_t kHugePage = 2 << 20;  // the smallest huge page of any processor

// Calls call(line) for each line of a file, without its end, as long as it returns true.
template <class Call>
void each_line(const char* path, const Call& call) {
  const std::unique_ptr<FILE, decltype(&std::fclose)> file(std::fopen(path, "re"), &std::fclose);
  if (!file) return;
  std::string line;
  for (int letter = 0; letter != EOF;) {
    letter = std::fgetc(file.get());
    if (letter != '\n' && letter != EOF) {
      line += static_cast<char>(letter);
    } else {
      if (!line.empty() && !call(line)) return;
      line.clear();
    }
  }
}

bool has_huge_pages() {
  bool has = false;
  each_line("/sys/kernel/mm/transparent_hugepage/enabled", [&](const std::string& modes) {
    has = modes.find("[never]") == std::string::npos;
    return false;
  });
  return has;
}

// The number after `name` in a file with lines like "name 12"; -1 if there is none.
int64_t read_number(const char* path, const std::string& name) {
  int64_t number = -1;
  each_line(path, [&](const std::string& line) {
    if (line.compare(0, name.size(), name) != 0) return true;
    const char* digits = line.c_str() + name.size();
    char* end = nullptr;
    const int64_t read = std::strtoll(digits, &end, 10);
    if (end != digits) number = read;
    return false;
  });
  return number;
}

// 32 MB if small pages have 16 kB, as on a Raspberry Pi 5.
int64_t huge_page_size() {
  const int64_t size = read_number("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", "");
  const bool is_usable = size > kHugePage && size <= 16 * kHugePage && (size & (size - 1)) == 0;
  return is_usable ? size : kHugePage;
}

// Bytes that the process may still allocate, limited by the machine and by its control group.
int64_t available_memory() {
  const int64_t free = read_number("/proc/meminfo", "MemAvailable:");
  const int64_t available = free < 0 ? std::numeric_limits<int64_t>::max() : free * 1024;
  const int64_t most = read_number("/sys/fs/cgroup/memory.max", "");
  const int64_t used = read_number("/sys/fs/cgroup/memory.current", "");
  if (most < 0 || used < 0) return available;
  const int64_t cached = read_number("/sys/fs/cgroup/memory.stat", "file ");
  return std::min(available, most - used + std::max<int64_t>(cached, 0));
}

#endif

}  // namespace

#if defined(__linux__)

std::shared_ptr<WeightMemory> WeightMemory::start(const char* path) {
  if (!has_huge_pages()) return nullptr;
  const int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // non-blocking: it may be a pipe
  if (file < 0) return nullptr;
  struct stat status = {};
  const bool is_file = fstat(file, &status) == 0 && S_ISREG(status.st_mode);
  const int64_t size = is_file ? status.st_size : 0;
  std::shared_ptr<WeightMemory> memory(new WeightMemory(path, file, size));
  // At least as much memory as this takes must remain for others.
  if (size < kHugePage || available_memory() / 2 < size || !memory->reserve()) return nullptr;
  try {
    memory->reader_ = std::thread([raw = memory.get()] { raw->read(); });
  } catch (const std::system_error&) {
    return nullptr;
  }
  return memory;
}

WeightMemory::~WeightMemory() {
  next_.store(size_);  // stops the reader
  if (reader_.joinable()) reader_.join();
  if (reserved_) munmap(reserved_, static_cast<size_t>(num_reserved_));
  close(file_);
}

bool WeightMemory::reserve() {
  const int64_t aligned = huge_page_size();
  num_reserved_ = size_ + aligned + kHugePage;
  void* place = mmap(nullptr, static_cast<size_t>(num_reserved_), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (place == MAP_FAILED) return false;
  reserved_ = place;
  const auto address = reinterpret_cast<uintptr_t>(place);
  content_ = static_cast<uint8_t*>(place) + (-address & static_cast<uintptr_t>(aligned - 1));
  const int64_t whole = (size_ + kHugePage - 1) / kHugePage * kHugePage;
  return madvise(content_, static_cast<size_t>(whole), MADV_HUGEPAGE) == 0;
}

void WeightMemory::read() {
  for (int64_t start = 0; (start = next_.fetch_add(kHugePage)) < size_;) {
    const int64_t stop = std::min(size_, start + kHugePage);
    while (start < stop) {
      const ssize_t count =
          pread(file_, content_ + start, static_cast<size_t>(stop - start), start);
      if (count <= 0) return;
      start += count;
      num_read_.fetch_add(count);
    }
  }
}

bool WeightMemory::finish() {
  read();  // what the thread has not started
  if (reader_.joinable()) reader_.join();
  struct stat own = {}, now = {};
  if (num_read_.load() != size_ || fstat(file_, &own) != 0 || stat(path_.c_str(), &now) != 0)
    return false;
  const bool is_there = own.st_dev == now.st_dev && own.st_ino == now.st_ino &&
                        own.st_size == size_ && now.st_size == size_;
  return is_there && find_mappings();
}

bool WeightMemory::find_mappings() {
  const std::unique_ptr<char, decltype(&std::free)> resolved(realpath(path_.c_str(), nullptr),
                                                             &std::free);
  if (!resolved) return false;
  const std::string path = resolved.get();
  each_line("/proc/self/maps", [&](const std::string& line) {
    // first-last permissions offset device inode /path
    const size_t start = line.find('/');
    if (start == std::string::npos || line.compare(start, std::string::npos, path) != 0)
      return true;
    char* end = nullptr;
    const uintptr_t first = std::strtoull(line.c_str(), &end, 16);
    const uintptr_t last = std::strtoull(end + 1, &end, 16);
    const char* offset = std::strchr(end + 1, ' ');
    if (offset) mappings_.push_back({first, last, std::strtoull(offset, nullptr, 16)});
    return true;
  });
  return !mappings_.empty();
}

const void* WeightMemory::find(const void* mapped, int64_t bytes) const {
  const auto address = reinterpret_cast<uintptr_t>(mapped);
  for (const Mapping& mapping : mappings_) {
    if (address < mapping.first || address >= mapping.last) continue;
    const auto offset = static_cast<int64_t>(mapping.offset + (address - mapping.first));
    return offset <= size_ - bytes ? content_ + offset : nullptr;
  }
  return nullptr;
}

#else

std::shared_ptr<WeightMemory> WeightMemory::start(const char*) { return nullptr; }
WeightMemory::~WeightMemory() = default;
bool WeightMemory::finish() { return false; }
const void* WeightMemory::find(const void*, int64_t) const { return nullptr; }

#endif

KernelWeights::KernelWeights(const Weights& weights) : Weights(weights) {
  if (session_of_thread) session_of_thread->kernels.push_back(this);
}

KernelWeights::~KernelWeights() {
  if (!session_of_thread) return;
  std::vector<KernelWeights*>& kernels = session_of_thread->kernels;
  kernels.erase(std::remove(kernels.begin(), kernels.end(), this), kernels.end());
}

bool KernelWeights::move_to(const std::shared_ptr<const WeightMemory>& memory) {
  const int64_t num_scales = tiles() * blocks() * kTile, num_halves = 2 * num_scales;
  const void* found[] = {memory->find(values, tiles() * blocks() * block_bytes()),
                         memory->find(scales, num_halves),
                         minima ? memory->find(minima, num_halves) : nullptr};
  if (!found[0] || !found[1] || (minima && !found[2])) return false;
  values = static_cast<const uint8_t*>(found[0]);
  scales = static_cast<const uint16_t*>(found[1]);
  minima = static_cast<const uint16_t*>(found[2]);
  memory_ = memory;
  return true;
}

bool read_session_weights(const char* path) {
  if (session_of_thread && session_of_thread->memory->is_of(path)) return true;
  delete session_of_thread;
  session_of_thread = nullptr;
  std::shared_ptr<WeightMemory> memory = WeightMemory::start(path);
  if (!memory) return false;
  session_of_thread = new SessionWeights{std::move(memory), {}};
  return true;
}

bool take_session_weights() {
  const std::unique_ptr<SessionWeights> session(session_of_thread);
  session_of_thread = nullptr;
  if (!session || session->kernels.empty() || !session->memory->finish()) return false;
  bool are_all_moved = true;
  for (KernelWeights* kernel : session->kernels) are_all_moved &= kernel->move_to(session->memory);
  return are_all_moved;
}

}  // namespace bita
