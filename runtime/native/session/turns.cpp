#include "turns.h"

#include <algorithm>

namespace bita {

bool Turns::wait(const Deadline& deadline, const std::atomic<bool>* is_cancelled) {
  std::unique_lock<std::mutex> lock(mutex_);
  const uint64_t number = next_++;
  waiting_.push_back(number);
  const auto may_go = [&] {
    return (!is_taken_ && waiting_.front() == number) || (is_cancelled && *is_cancelled);
  };
  if (deadline) {
    changed_.wait_until(lock, *deadline, may_go);
  } else {
    changed_.wait(lock, may_go);
  }
  const bool has_turn = !is_taken_ && waiting_.front() == number;
  waiting_.erase(std::find(waiting_.begin(), waiting_.end(), number));
  is_taken_ |= has_turn;
  if (!has_turn) changed_.notify_all();  // another may be the first now
  return has_turn;
}

void Turns::end() {
  const std::lock_guard<std::mutex> lock(mutex_);
  is_taken_ = false;
  changed_.notify_all();
}

void Turns::wake() {
  const std::lock_guard<std::mutex> lock(mutex_);
  changed_.notify_all();
}

}  // namespace bita
