// Turns at a resource that one thread uses at a time, in the order of their requests.
//
// A mutex gives no order: a thread that unlocks and locks again would keep the others waiting.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>

namespace bita {

using StopTime = std::optional<std::chrono::steady_clock::time_point>;

class Turns {
 public:
  // Wait for a turn; false if the deadline passes or `is_cancelled` becomes true before it comes.
  bool wait(const StopTime& deadline, const std::atomic<bool>* is_cancelled);
  void end();

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<uint64_t> waiting_;  // numbers, the one whose turn is next first
  uint64_t next_ = 0;
  bool is_taken_ = false;
};

// A turn, which ends with the block.
class Turn {
 public:
  explicit Turn(Turns& turns) : turns_(turns), has_turn_(turns.wait(std::nullopt, nullptr)) {}
  Turn(Turns& turns, const StopTime& deadline, const std::atomic<bool>* is_cancelled)
      : turns_(turns), has_turn_(turns.wait(deadline, is_cancelled)) {}
  ~Turn() {
    if (has_turn_) turns_.end();
  }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;
  explicit operator bool() const { return has_turn_; }

 private:
  Turns& turns_;
  const bool has_turn_;
};

}  // namespace bita
