// Counts and times of a session's decoding (`runtime/decoding/stats.py`).
#pragma once

#include <array>
#include <cstdint>

#include "../engine/tree.h"

namespace bita {

constexpr size_t kMaxDepthCounted = 32;

// num_tokens: tokens of the answers that decode steps emitted, without the one from the prefill.
// num_from_text: accepted nodes whose draft did not come from a mask. accepted_by_depth: accepted
// nodes of each depth, starting at 1; deeper ones count as the last.
struct Stats {
  int64_t num_steps = 0;
  int64_t num_guarded_steps = 0;  // steps whose tree the guard made smaller
  int64_t num_tokens = 0;
  int64_t num_prompt_tokens = 0;
  int64_t num_reused_tokens = 0;  // prompt tokens that the cache already held
  int64_t num_accepted = 0;
  int64_t num_from_text = 0;
  double prefill_ms = 0.0;
  double step_ms = 0.0;     // of decode steps
  double backend_ms = 0.0;  // the part of step_ms inside ONNX Runtime
  std::array<int64_t, kMaxDepthCounted> accepted_by_depth{};

  // Add one decode step. num_guesses: nodes of the spine whose draft did not come from a mask.
  void count_step(const Path& path, int64_t num_guesses);
};

// Peak physical memory of the process, in bytes; 0 if the system does not report it.
int64_t peak_host_bytes();

}  // namespace bita
