// Chooses the token that follows a row of a step, one row after the other along an accepted path.
//
// Only rows at which the text continues are examined, so a choice depends on the same things
// (penalties, position) as in plain decoding (`runtime/decoding/chooser.py`).
#pragma once

#include <cstdint>
#include <optional>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "../decoding/sampling.h"
#include "options.h"

namespace bita {

// Lowers the logits of tokens that the text already contains. The repetition penalty counts prompt
// and answer; presence and frequency penalties count the answer alone.
class Penalties {
 public:
  Penalties(const Options& options, const std::vector<int64_t>& prompt_ids);

  template <class Real>
  void apply(Real* row) const;
  void count(int64_t token);  // a token of the answer

 private:
  float repetition_, presence_, frequency_;
  std::vector<int64_t> ids_;
  std::vector<float> counts_;  // in the answer
  std::unordered_map<int64_t, size_t> place_;
};

// The log-probability (natural logarithm) that the model gives a token, before any option.
struct TokenLogprob {
  double logprob = 0.0;
  std::vector<std::pair<int32_t, double>> best;  // the best tokens at its place, best first
};

// The choices of one answer.
class Chooser {
 public:
  // eos_ids: tokens that end the answer, EOS or stop. choice: index among several answers to the
  // prompt.
  Chooser(const Options& options, const std::vector<int64_t>& prompt_ids,
          const std::vector<int64_t>& eos_ids, uint64_t seed, uint64_t choice);

  bool needs_logits() const { return needs_logits_; }
  // Whether the last choice was an EOS or stop token; always false in greedy decoding, where the
  // stop rule cuts the answer.
  bool has_ended() const { return has_ended_; }

  // One entry for each chosen token, if log-probabilities are requested.
  const std::vector<TokenLogprob>& logprobs() const { return logprobs_; }

  // Choose the token that follows a row of logits, [V], which is overwritten. Throws a Fault if
  // they are not numbers.
  int64_t choose(float* logits, int64_t vocab_size);

 private:
  // Apply penalties and biases. Large values are added in double precision, and the result is then
  // relative to the best token.
  void change(float* logits, int64_t vocab_size);

  Options options_;
  bool needs_logits_, has_ended_ = false;
  std::unordered_set<int64_t> eos_ids_;
  Draws draws_;
  std::optional<Penalties> penalties_;
  std::vector<TokenLogprob> logprobs_;
};

}  // namespace bita
