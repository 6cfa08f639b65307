#include "phases.h"

namespace bita {

void Progress::start(size_t num_phases, int64_t most_pieces) {
  is_finished_.store(false, std::memory_order_relaxed);
  most_pieces_ = static_cast<size_t>(most_pieces);
  const size_t num_taken = num_phases * most_pieces_;
  if (num_taken > num_taken_) {
    taken_.reset(new Apart<bool>[num_taken]);
    num_taken_ = num_taken;
  }
  if (num_phases > num_phases_) {
    done_.reset(new Apart<int64_t>[num_phases]);
    num_phases_ = num_phases;
  }
  for (size_t i = 0; i < num_taken; ++i) taken_[i].value.store(false, std::memory_order_relaxed);
  for (size_t i = 0; i < num_phases; ++i) done_[i].value.store(0, std::memory_order_relaxed);
}

Progress& progress_of_thread() {
  thread_local Progress progress;
  return progress;
}

}  // namespace bita
