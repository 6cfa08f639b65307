// Weights in memory of huge pages.
//
// A step reads all weights once, as fast as memory gives them. ONNX Runtime maps their file, whose
// pages have 4 kB: looking these up takes a fifth to a quarter of that time. Read into huge pages,
// the weights take as much memory, but no other process shares it.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "../kernels/kernels.h"

namespace bita {

// The content of a file in memory of its own.
class WeightMemory {
 public:
  // Begin to read the file, on a thread. Null where it is better left mapped: there are no huge
  // pages, little memory is left, or the file cannot be read.
  static std::shared_ptr<WeightMemory> start(const char* path);
  ~WeightMemory();
  WeightMemory(const WeightMemory&) = delete;
  WeightMemory& operator=(const WeightMemory&) = delete;

  bool is_of(const char* path) const { return path_ == path; }

  // Read what is left of it, and find where the process has the file mapped; false if it could
  // not be read, or another file is at its path now.
  bool finish();

  // Where the content of `bytes` mapped bytes is; null if they are not the file's.
  const void* find(const void* mapped, int64_t bytes) const;

 private:
  struct Mapping {
    uintptr_t first, last;
    uint64_t offset;
  };

  WeightMemory(const char* path, int file, int64_t size) : path_(path), file_(file), size_(size) {}
  bool reserve();
  void read();  // by each thread that calls it, until nothing is left
  bool find_mappings();

  std::string path_;
  int file_;
  int64_t size_;
  void* reserved_ = nullptr;  // what is to be given back
  int64_t num_reserved_ = 0;
  uint8_t* content_ = nullptr;
  std::atomic<int64_t> next_{0}, num_read_{0};
  std::thread reader_;
  std::vector<Mapping> mappings_;
};

// Weights of a kernel. They begin where ONNX Runtime has them, and may be moved while the session
// is made.
class KernelWeights : public Weights {
 public:
  explicit KernelWeights(const Weights& weights);
  ~KernelWeights();
  KernelWeights(const KernelWeights&) = delete;
  KernelWeights& operator=(const KernelWeights&) = delete;

  // Move to `memory` what it has; whether that is all.
  bool move_to(const std::shared_ptr<const WeightMemory>& memory);

 private:
  std::shared_ptr<const WeightMemory> memory_;
};

// Begin to read the weights of the session that this thread makes next, or go on if that has begun;
// false as for WeightMemory::start.
bool read_session_weights(const char* path);

// Move the weights of the kernels that this thread has made since; whether all were moved. It is
// called before they run.
bool take_session_weights();

}  // namespace bita
