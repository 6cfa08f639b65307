#include "turns.h"

#include <algorithm>

namespace bita {

namespace {

// The interval at which a waiting thread checks whether it was cancelled: a signal handler, which
// may cancel, must not lock anything to wake it.
constexpr std::chrono::milliseconds kLook(5);

}  // namespace

bool Turns::wait(const StopTime& deadline, const std::atomic<bool>* is_cancelled) {
  std::unique_lock<std::mutex> lock(mutex_);
  const uint64_t number = next_++;
  waiting_.push_back(number);
  const auto may_go = [&] {
    return (!is_taken_ && waiting_.front() == number) || (is_cancelled && *is_cancelled);
  };
  while (!may_go()) {
    auto until = std::chrono::steady_clock::now() + kLook;
    if (deadline && *deadline <= std::chrono::steady_clock::now()) break;
    if (deadline) until = std::min(until, *deadline);
    if (is_cancelled || deadline) {
      changed_.wait_until(lock, until, may_go);
    } else {
      changed_.wait(lock, may_go);
    }
  }
  const bool has_turn = !is_taken_ && waiting_.front() == number;
  waiting_.erase(std::find(waiting_.begin(), waiting_.end(), number));
  is_taken_ |= has_turn;
  if (!has_turn) changed_.notify_all();  // another thread may be first now
  return has_turn;
}

void Turns::end() {
  const std::lock_guard<std::mutex> lock(mutex_);
  is_taken_ = false;
  changed_.notify_all();
}

}  // namespace bita
