// What usually follows a few tokens in a model's own answers: a table of an adapter.
#pragma once
#include <cstdint>

namespace bita {

constexpr int64_t kLongestRun = 3;  // tokens that are looked up

// Where a run of tokens is looked for first, and its mark.
struct Place {
  uint64_t slot = 0;
  uint16_t mark = 0;
};

// tokens: of the run, kLongestRun at most. log2_slots: of the table's slots.
Place place_of(const int64_t* tokens, int64_t count, int log2_slots);

struct Continuation {
  int64_t token = 0;
  int64_t percent = 0;  // how surely; 0 where nothing is known
};

// Laid out as bita/continuations.py says. marks, values: [num_slots], a power of two, some of them
// empty; marks null for no table.
struct Continuations {
  const uint16_t* marks = nullptr;
  const uint32_t* values = nullptr;
  int64_t num_slots = 0;

  // What follows the last of `count` tokens, by the longest run that the table knows.
  Continuation find(const int64_t* before, int64_t count) const;
};

}  // namespace bita
