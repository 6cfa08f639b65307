// Memory that an operator needs while it runs, kept for the next run on the same thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace bita {

// An array that only grows and is never initialized: it keeps its last content until it grows.
template <class T>
class Scratch {
 public:
  T* take(int64_t count) {
    if (count > size_) {
      data_.reset(new T[static_cast<size_t>(count)]);
      size_ = count;
    }
    return data_.get();
  }

 private:
  std::unique_ptr<T[]> data_;
  int64_t size_ = 0;
};

}  // namespace bita
