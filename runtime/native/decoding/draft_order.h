// Orders the candidates for the next token by all available evidence: a mask's drafts, and guesses.
#pragma once
#include <cstdint>

namespace bita {

constexpr int64_t kMaxDrafts = 256;  // from a mask
constexpr int64_t kMaxGuesses = 4;   // from other sources

// A C struct. left, right: float16 [V, rank]; null without pair scores.
struct PairScores {
  const uint16_t* left;
  const uint16_t* right;
  int64_t rank;
};

// The task of `order_drafts` in runtime/decoding/draft_order.py.
//
// ids, logits: [count], the drafts of a mask. before: the token that precedes them. scale: factor
// of the mask's evidence, logits and pair scores. guesses: other candidate tokens, each with a
// bonus on its score; a draft that is also guessed gets its bonus too. ordered: [count], the best
// of all candidates, best first. share: probability of the best of them (softmax).
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

// Fill `ordered` and `share`. Candidates with equal scores keep their order. Returns 0, or -1 for
// counts that are out of range.
int order_drafts(DraftOrder& task);

}  // namespace bita
