// Weights in huge pages.
//
// A step reads all weights once, at the speed of memory. ONNX Runtime maps their file with pages of
// 4 kB, whose address translation takes a fifth to a quarter of that time. In huge pages the
// weights take as much memory, but no other process shares it.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "../kernels/kernels.h"

namespace bita {

// A copy of a file in separate memory.
class WeightMemory {
 public:
  // Begin to read the file on a thread. Null if it is better left mapped: there are no huge pages,
  // too little memory is left, or the file cannot be read.
  static std::shared_ptr<WeightMemory> start(const char* path);
  ~WeightMemory();
  WeightMemory(const WeightMemory&) = delete;
  WeightMemory& operator=(const WeightMemory&) = delete;

  bool is_of(const char* path) const { return path_ == path; }

  // Read the rest, and find where the process has mapped the file. False if it could not be read,
  // or if its path now names another file.
  bool finish();

  // The copy of `bytes` mapped bytes; null if they do not belong to the file.
  const void* find(const void* mapped, int64_t bytes) const;

 private:
  struct Mapping {
    uintptr_t first, last;
    uint64_t offset;
  };

  WeightMemory(const char* path, int file, int64_t size) : path_(path), file_(file), size_(size) {}
  bool reserve();
  void read();  // called by several threads; returns when nothing is left
  bool find_mappings();

  std::string path_;
  int file_;
  int64_t size_;
  void* reserved_ = nullptr;  // the memory to release
  int64_t num_reserved_ = 0;
  uint8_t* content_ = nullptr;
  std::atomic<int64_t> next_{0}, num_read_{0};
  std::thread reader_;
  std::vector<Mapping> mappings_;
};

// Weights of a kernel. At first they are where ONNX Runtime has them; they may be moved while the
// session is created.
class KernelWeights : public Weights {
 public:
  explicit KernelWeights(const Weights& weights);
  ~KernelWeights();
  KernelWeights(const KernelWeights&) = delete;
  KernelWeights& operator=(const KernelWeights&) = delete;

  // Move the weights that `memory` holds; returns whether it holds all.
  bool move_to(const std::shared_ptr<const WeightMemory>& memory);

 private:
  std::shared_ptr<const WeightMemory> memory_;
};

// Begin to read the weights of the session that this thread creates next, or continue if that has
// begun; false in the cases of WeightMemory::start.
bool read_session_weights(const char* path);

// Move the weights of the kernels that this thread has created since; returns whether all were
// moved. Must be called before they run.
bool take_session_weights();

}  // namespace bita
