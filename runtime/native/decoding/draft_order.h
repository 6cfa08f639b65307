// Orders what may come after a token by all that is known of it: a mask's drafts, and guesses.
#pragma once
#include <cstdint>

namespace bita {

constexpr int64_t kMaxDrafts = 256;  // of a mask
constexpr int64_t kMaxGuesses = 4;   // from elsewhere

// Laid out for C. left, right: float16 [V, rank]; null for no pair scores.
struct PairScores {
  const uint16_t* left;
  const uint16_t* right;
  int64_t rank;
};

// `order_drafts` of runtime/decoding/draft_order.py.
//
// ids, logits: [count], the drafts of a mask. before: the token in front of them. scale: of what
// the mask says, logits and pair scores. guesses: other tokens that may come, each with a bonus on
// its score; a draft that is guessed has both. ordered: [count], the best of all, best first.
// share: of the best among them (softmax).
struct DraftOrder {
  PairScores pairs;
  const int64_t* ids;
  const float* logits;
  int64_t count;
  int64_t before;
  float scale;
  float share;
  int64_t num_guesses;
  int64_t guesses[kMaxGuesses];
  float bonuses[kMaxGuesses];
  int64_t* ordered;
};

// Fill `ordered` and `share`. Equal scores keep the order that was given. Returns 0, or -1 for
// counts that are out of range.
int order_drafts(DraftOrder& task);

}  // namespace bita
