// Options of an answer, and their valid ranges (`runtime/options.py`).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace bita {

enum class DraftPolicy {
  kEngine,  // what calibration decided
  kOn,      // the engine's trees in every step, even if they cost more than they gain
  kOff,     // plain decoding
};

// A row of logits is changed in this order: penalties, biases, temperature, top_k, top_p, min_p.
// With the defaults decoding is greedy and unchanged.
struct Options {
  int64_t max_new_tokens = 256;
  std::vector<std::string> stops;
  std::vector<int64_t> stop_token_ids;
  bool ignores_eos = false;
  double temperature = 0.0;  // below 1e-5: the best token
  int64_t top_k = 0;
  double top_p = 1.0, min_p = 0.0;
  double repetition_penalty = 1.0, presence_penalty = 0.0, frequency_penalty = 0.0;
  std::vector<std::pair<int64_t, double>> logit_bias;
  // Number of best tokens to report with each new one, with log-probabilities; none: report no
  // log-probabilities.
  std::optional<int64_t> logprobs;
  std::optional<uint64_t> seed;  // none: a random one
  std::optional<double> timeout_s;
  DraftPolicy drafts = DraftPolicy::kEngine;

  bool is_greedy() const;  // always take the best token
  bool penalizes() const;
  bool needs_logits() const;  // whether a step's best tokens are not enough
  // Whether biases and penalties are added in double precision, to preserve differences of logits.
  bool has_large_numbers() const;

  // Throws a Fault that lists every invalid value. vocab_size: V.
  void check(int64_t vocab_size) const;
};

}  // namespace bita
