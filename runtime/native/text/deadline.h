// Time limits of computations.
#pragma once

#include <chrono>
#include <stdexcept>

namespace bita {

// Thrown when a computation exceeds its time or size limit.
struct TooSlow : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Deadline {
 public:
  explicit Deadline(std::chrono::microseconds duration)
      : end_(std::chrono::steady_clock::now() + duration) {}

  // Throws TooSlow once the time has passed.
  void check() const {
    if (std::chrono::steady_clock::now() > end_) throw TooSlow("it takes too long");
  }

 private:
  std::chrono::steady_clock::time_point end_;
};

}  // namespace bita
