#include "options.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "../base/fault.h"

namespace bita {

namespace {

constexpr double kMinTemperature = 1e-5;  // float32 cannot represent a draw below it
constexpr double kMaxTemperature = 1e30, kMaxPenalty = 1e6, kMaxRepetitionPenalty = 1e3;
constexpr double kMaxBias = 1e9, kMaxTimeoutS = 4e6;
constexpr double kLargeBias = 1e3, kLargePenalty = 16.0;  // float32 would round logits away
constexpr size_t kMaxBiasFaults = 3;
constexpr int64_t kMaxLogprobs = 20;

using Faults = std::vector<std::string>;

std::string shortest(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}

void check_range(Faults& faults, const std::string& name, double value, double low, double high,
                 bool excludes_low = false) {
  // NaN fails this test
  if (value >= low && value <= high && !(excludes_low && value == low)) return;
  const std::string span = excludes_low ? "above " + shortest(low) + ", up to " + shortest(high)
                                        : "from " + shortest(low) + " to " + shortest(high);
  faults.push_back(name + " is " + shortest(value) + "; pass a finite number " + span);
}

void check_whole(Faults& faults, const std::string& name, int64_t value, int64_t least,
                 const std::string& more = "") {
  if (value >= least) return;
  faults.push_back(name + " is " + std::to_string(value) + "; pass an integer from " +
                   std::to_string(least) + " on" + more + ", at most 2^63 - 1");
}

void check_ids(Faults& faults, const std::string& name, int64_t token, int64_t vocab_size) {
  if (token >= 0 && token < vocab_size) return;
  faults.push_back(name + ": token id " + std::to_string(token) + " is not in [0, " +
                   std::to_string(vocab_size) + ")");
}

}  // namespace

bool Options::is_greedy() const { return temperature < kMinTemperature; }

bool Options::penalizes() const {
  return repetition_penalty != 1 || presence_penalty != 0 || frequency_penalty != 0;
}

bool Options::needs_logits() const {
  return !is_greedy() || penalizes() || !logit_bias.empty() || logprobs.has_value();
}

bool Options::has_large_numbers() const {
  double largest = 0;
  for (const auto& [token, bias] : logit_bias) largest = std::max(largest, std::fabs(bias));
  return std::max(std::fabs(presence_penalty), std::fabs(frequency_penalty)) > kLargePenalty ||
         largest > kLargeBias;
}

void Options::check(int64_t vocab_size) const {
  Faults faults;
  check_whole(faults, "max_new_tokens", max_new_tokens, 1);
  check_range(faults, "temperature", temperature, 0, kMaxTemperature);
  check_range(faults, "top_p", top_p, 0, 1, true);
  check_range(faults, "min_p", min_p, 0, 1);
  check_range(faults, "repetition_penalty", repetition_penalty, 1 / kMaxRepetitionPenalty,
              kMaxRepetitionPenalty);
  check_range(faults, "presence_penalty", presence_penalty, -kMaxPenalty, kMaxPenalty);
  check_range(faults, "frequency_penalty", frequency_penalty, -kMaxPenalty, kMaxPenalty);
  check_whole(faults, "top_k", top_k, 0, " (0: all tokens)");
  if (logprobs && (*logprobs < 0 || *logprobs > kMaxLogprobs)) {
    faults.push_back("num_best is " + std::to_string(*logprobs) + "; pass an integer from 0 to " +
                     std::to_string(kMaxLogprobs));
  }
  if (timeout_s) check_range(faults, "timeout_s", *timeout_s, 0, kMaxTimeoutS, true);
  size_t num_biases = 0;
  for (const auto& [token, bias] : logit_bias) {
    const size_t num_before = faults.size();
    check_range(faults, "logit_bias of token " + std::to_string(token), bias, -kMaxBias, kMaxBias);
    check_ids(faults, "logit_bias", token, vocab_size);
    num_biases += faults.size() > num_before;
    if (num_biases == kMaxBiasFaults) break;
  }
  for (const int64_t token : stop_token_ids) {
    const size_t num_before = faults.size();
    check_ids(faults, "stop_token_ids", token, vocab_size);
    if (faults.size() > num_before) break;
  }
  raise_faults(FaultKind::kPrompt, "options of the answer", faults);
}

}  // namespace bita
