// Time that a computation may take.
#pragma once

#include <chrono>
#include <stdexcept>

namespace bita {

// What takes longer ends with this.
struct TooSlow : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Deadline {
 public:
  explicit Deadline(std::chrono::microseconds duration)
      : end_(std::chrono::steady_clock::now() + duration) {}

  // Throws TooSlow when the time is over.
  void check() const {
    if (std::chrono::steady_clock::now() > end_) throw TooSlow("it takes too long");
  }

 private:
  std::chrono::steady_clock::time_point end_;
};

}  // namespace bita
