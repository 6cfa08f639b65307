// Chooses the token that follows a row of a step, one after the other along an accepted path.
//
// Rows are looked at only where the text goes on, so what a choice depends on (penalties, the
// position) is what it depends on in plain decoding (`runtime/decoding/chooser.py`).
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

// Takes from the logits of tokens that the text has already. The repetition penalty counts prompt
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

// A token and how probable the model itself finds it, before any option: natural logarithms.
struct TokenLogprob {
  double logprob = 0.0;
  std::vector<std::pair<int32_t, double>> best;  // the best tokens at its place, best first
};

// The choices of one answer.
class Chooser {
 public:
  // eos_ids: tokens that end the answer, EOS or stop. choice: of several answers to the prompt.
  Chooser(const Options& options, const std::vector<int64_t>& prompt_ids,
          const std::vector<int64_t>& eos_ids, uint64_t seed, uint64_t choice);

  bool needs_logits() const { return needs_logits_; }
  // Whether the last choice was an EOS or stop token; never where the best tokens are taken, whose
  // answer the stop rule cuts.
  bool has_ended() const { return has_ended_; }

  // Of all tokens that were chosen, where they are asked for.
  const std::vector<TokenLogprob>& logprobs() const { return logprobs_; }

  // The token that follows a row of logits, [V], which is overwritten. Throws a Fault if they are
  // not numbers.
  int64_t choose(float* logits, int64_t vocab_size);

 private:
  // Penalties and biases. Large numbers are added in double precision, and the result is relative
  // to the best token then.
  void change(float* logits, int64_t vocab_size);

  Options options_;
  bool needs_logits_, has_ended_ = false;
  std::unordered_set<int64_t> eos_ids_;
  Draws draws_;
  std::optional<Penalties> penalties_;
  std::vector<TokenLogprob> logprobs_;
};

}  // namespace bita
