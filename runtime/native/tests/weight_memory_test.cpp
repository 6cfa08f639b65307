// Moving weights from their mapped file into huge pages.
#include "../operators/weight_memory.h"

#include "check.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>

extern "C" int bita_operators_read_weights(const char* path);
extern "C" int bita_operators_take_weights(void);

namespace bita::tests {
namespace {

constexpr int64_t kBytes = (5 << 20) + 1234;  // more than two huge pages, and part of another

bool has_huge_pages() {
  char modes[100] = "[never]";
  if (FILE* file = std::fopen("/sys/kernel/mm/transparent_hugepage/enabled", "r")) {
    if (!std::fgets(modes, sizeof(modes), file)) modes[0] = 0;
    std::fclose(file);
  }
  return !std::strstr(modes, "[never]");
}

// A file of numbers, mapped from its start, and from its second page.
class MappedFile {
 public:
  MappedFile() {
    char name[] = "/tmp/bita-weights-XXXXXX";
    file_ = mkstemp(name);
    path_ = name;
    write(kBytes);
    first_ = map(0);
    second_ = map(kPageBytes);
  }
  ~MappedFile() {
    munmap(first_, kBytes);
    munmap(second_, kBytes - kPageBytes);
    close(file_);
    std::remove(path_.c_str());
  }

  const char* path() const { return path_.c_str(); }
  const uint8_t* at(int64_t offset) const {
    return offset < kPageBytes ? first_ + offset : second_ + (offset - kPageBytes);
  }
  bool holds(int64_t offset, const void* content, int64_t bytes) const {
    return content && !std::memcmp(at(offset), content, static_cast<size_t>(bytes));
  }
  // Put another file at its path.
  void replace() {
    std::remove(path_.c_str());
    if (FILE* other = std::fopen(path(), "w")) std::fclose(other);
    if (truncate(path(), kBytes)) std::abort();
  }

 private:
  static constexpr int64_t kPageBytes = 4096;

  void write(int64_t count) const {
    std::vector<uint8_t> content(static_cast<size_t>(count));
    uint32_t state = 1;
    for (uint8_t& byte : content) byte = static_cast<uint8_t>((state = state * 1664525 + 1) >> 24);
    if (::write(file_, content.data(), content.size()) != count) std::abort();
  }
  uint8_t* map(int64_t offset) const {
    void* place =
        mmap(nullptr, static_cast<size_t>(kBytes - offset), PROT_READ, MAP_PRIVATE, file_, offset);
    if (place == MAP_FAILED) std::abort();
    return static_cast<uint8_t*>(place);
  }

  int file_;
  std::string path_;
  uint8_t *first_, *second_;
};

// 4-bit weights of 64 inputs and 128 outputs, stored in the file at `offset`.
Weights weights_in(const MappedFile& file, int64_t offset) {
  Weights weights{file.at(offset), nullptr, nullptr, 64, 128, 4};
  const int64_t blocks = weights.tiles() * weights.blocks(), scales = offset + blocks * 256;
  weights.scales = reinterpret_cast<const uint16_t*>(file.at(scales));
  weights.minima = reinterpret_cast<const uint16_t*>(file.at(scales + blocks * 32));
  return weights;
}

const Adds finds("Mapped weights are found in memory, with the same content", [] {
  const MappedFile file;
  const std::shared_ptr<WeightMemory> memory = WeightMemory::start(file.path());
  expect((memory != nullptr) == has_huge_pages(), "it begins if there are huge pages");
  if (!memory) return;
  expect(memory->is_of(file.path()) && !memory->is_of("/tmp"), "the file's path");
  expect(memory->finish(), "it was read");
  for (const int64_t offset : {int64_t{0}, int64_t{64}, int64_t{4096}, int64_t{2} << 20}) {
    const int64_t bytes = kBytes - offset;
    expect(file.holds(offset, memory->find(file.at(offset), bytes), bytes), "the content");
    expect(!memory->find(file.at(offset), bytes + 1), "no more than the file has");
  }
  const uint8_t other[8] = {};
  expect(!memory->find(other, 8), "memory outside the file");
});

const Adds refuses("A file that is missing, small, or replaced is not read", [] {
  expect(!WeightMemory::start("/tmp/bita-there-is-none"), "no file");
  expect(!WeightMemory::start("/tmp"), "a folder");
  expect(!WeightMemory::start("/proc/self/status"), "a file without a size");
  MappedFile file;
  const std::shared_ptr<WeightMemory> memory = WeightMemory::start(file.path());
  file.replace();
  expect(!memory || !memory->finish(), "another file at its path");
  expect(bita_operators_read_weights(nullptr) == -1, "no path");
});

const Adds moves("Weights of a session's kernels move when they are taken", [] {
  const MappedFile file;
  expect(bita_operators_take_weights() == -1, "nothing was read");
  if (!has_huge_pages()) return;
  expect(bita_operators_read_weights(file.path()) == 0, "it begins");
  expect(bita_operators_read_weights(file.path()) == 0, "it continues");
  const Weights mapped = weights_in(file, 8192);
  std::optional<KernelWeights> first(mapped), second(mapped);
  {
    const KernelWeights ended(mapped);
  }
  expect(first->values == mapped.values, "they are mapped until they are taken");
  expect(bita_operators_take_weights() == 0, "they are taken");
  const KernelWeights later(mapped);
  expect(later.values == mapped.values, "kernels of other sessions keep theirs");
  expect(first->values != mapped.values && first->values == second->values, "they moved");
  first.reset();
  const int64_t blocks = mapped.tiles() * mapped.blocks();
  expect(!std::memcmp(second->values, mapped.values, static_cast<size_t>(blocks * 256)) &&
             !std::memcmp(second->scales, mapped.scales, static_cast<size_t>(blocks * 32)) &&
             !std::memcmp(second->minima, mapped.minima, static_cast<size_t>(blocks * 32)),
         "the same values, scales and minima, as long as one kernel has them");
  expect(bita_operators_take_weights() == -1, "they are taken once");
});

const Adds stays("Weights outside the file stay in place", [] {
  const MappedFile file, other;
  if (!has_huge_pages()) return;
  expect(bita_operators_read_weights(other.path()) == 0, "it begins with another file");
  expect(bita_operators_read_weights(file.path()) == 0, "it begins");
  const Weights mapped = weights_in(file, 0), foreign = weights_in(other, 0);
  const KernelWeights own(mapped), not_own(foreign);
  expect(bita_operators_take_weights() == -1, "not all were taken");
  expect(own.values != mapped.values && not_own.values == foreign.values,
         "the file's weights were");
  expect(bita_operators_read_weights(file.path()) == 0, "it begins");
  expect(bita_operators_take_weights() == -1, "a session without kernels");
});

}  // namespace
}  // namespace bita::tests
#endif
