// What a session counts and times while it decodes (`runtime/decoding/stats.py`).
#pragma once

#include <array>
#include <cstdint>

#include "../engine/tree.h"

namespace bita {

constexpr size_t kMaxDepthCounted = 32;

// num_tokens: of the answers, that decode steps emitted; the prefill's one is not counted.
// num_from_text: accepted nodes whose draft was no mask's. accepted_by_depth: accepted nodes of
// each depth from 1 on; deeper ones count as the last.
struct Stats {
  int64_t num_steps = 0;
  int64_t num_guarded_steps = 0;  // whose tree the guard made smaller
  int64_t num_tokens = 0;
  int64_t num_prompt_tokens = 0;
  int64_t num_reused_tokens = 0;  // those of them that the cache held already
  int64_t num_accepted = 0;
  int64_t num_from_text = 0;
  double prefill_ms = 0.0;
  double step_ms = 0.0;     // of decode steps
  double backend_ms = 0.0;  // the part of it inside ONNX Runtime
  std::array<int64_t, kMaxDepthCounted> accepted_by_depth{};

  // Add one decode step. num_guesses: nodes of the spine whose draft was no mask's.
  void count_step(const Path& path, int64_t num_guesses);
};

// The most physical memory that the process had so far, in bytes; 0 where the system does not say.
int64_t peak_host_bytes();

}  // namespace bita
