// Likely continuations of a few tokens in a model's own answers: a table stored in an adapter.
#pragma once
#include <cstdint>

namespace bita {

constexpr int64_t kLongestRun = 3;  // maximum number of tokens that are looked up

// The slot at which the search for a run of tokens starts, and the run's mark.
struct Place {
  uint64_t slot = 0;
  uint16_t mark = 0;
};

// tokens: the run, at most kLongestRun tokens. log2_slots: binary logarithm of the table's size.
Place place_of(const int64_t* tokens, int64_t count, int log2_slots);

struct Continuation {
  int64_t token = 0;
  int64_t percent = 0;  // its probability; 0 if nothing is known
};

// A table in the layout of bita/continuations.py. marks, values: [num_slots], a power of two, with
// some empty slots; marks is null if there is no table.
struct Continuations {
  const uint16_t* marks = nullptr;
  const uint32_t* values = nullptr;
  int64_t num_slots = 0;

  // Find the likely successor of `count` tokens, by the longest run at their end that the table
  // contains.
  Continuation find(const int64_t* before, int64_t count) const;
};

}  // namespace bita
