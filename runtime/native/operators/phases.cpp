#include "phases.h"

namespace bita {

void Progress::start(size_t num_phases, int64_t members) {
  is_finished_.store(false, std::memory_order_relaxed);
  members_ = members;
  const size_t num_counts = num_phases * static_cast<size_t>(members + 1);
  if (num_counts > num_counts_) {
    counts_.reset(new Count[num_counts]);
    num_counts_ = num_counts;
  }
  for (size_t i = 0; i < num_counts; ++i) counts_[i].value.store(0, std::memory_order_relaxed);
}

Progress& progress_of_thread() {
  thread_local Progress progress;
  return progress;
}

}  // namespace bita
