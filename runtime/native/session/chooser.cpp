#include "chooser.h"

#include <algorithm>
#include <cmath>

#include "../base/fault.h"
#include "../kernels/isa.h"
#include "soundness.h"

namespace bita {

namespace {

// The best token, the first of equal ones, and whether its logit is finite and no logit is NaN.
struct Best {
  int64_t token = 0;
  bool is_sound = false;
};

Best best_of(const float* logits, int64_t count) {
  float logit = 0.0f;
  Best best;
  Ranking ranking{&logit, &best.token, 1, 0, false};
  kernels().rank(logits, count, 0, ranking);
  best.is_sound = !ranking.has_nan && ranking.count == 1 && std::isfinite(logit);
  return best;
}

// The log-probabilities of a token and of the best tokens of its row, [count].
TokenLogprob describe(const std::vector<float>& row, int64_t token, int64_t num_best) {
  const float best = *std::max_element(row.begin(), row.end());
  double sum = 0.0;
  for (const float logit : row) sum += static_cast<double>(std::exp(logit - best));
  const double total = static_cast<double>(best) + std::log(sum);
  const auto logprob = [&](int64_t id) {
    return static_cast<double>(row[static_cast<size_t>(id)]) - total;
  };
  TokenLogprob found;
  found.logprob = logprob(token);
  const auto count = std::min(num_best, static_cast<int64_t>(row.size()));
  std::vector<float> logits(static_cast<size_t>(count));
  std::vector<int64_t> ids(logits.size());
  Ranking ranking{logits.data(), ids.data(), count, 0, false};
  if (count) kernels().rank(row.data(), static_cast<int64_t>(row.size()), 0, ranking);
  for (const int64_t id : ids) found.best.emplace_back(static_cast<int32_t>(id), logprob(id));
  return found;
}

}  // namespace

Penalties::Penalties(const Options& options, const std::vector<int64_t>& prompt_ids)
    : repetition_(static_cast<float>(options.repetition_penalty)),
      presence_(static_cast<float>(options.presence_penalty)),
      frequency_(static_cast<float>(options.frequency_penalty)) {
  if (options.repetition_penalty == 1) return;
  for (const int64_t token : prompt_ids) {
    if (!place_.emplace(token, ids_.size()).second) continue;
    ids_.push_back(token);
    counts_.push_back(0.0f);
  }
}

template <class Real>
void Penalties::apply(Real* row) const {
  for (size_t i = 0; i < ids_.size(); ++i) {
    Real& logit = row[ids_[i]];
    if (repetition_ != 1.0f) {
      const auto factor = static_cast<Real>(repetition_);
      logit = logit > 0 ? logit / factor : logit * factor;
    }
    const float present = counts_[i] > 0 ? 1.0f : 0.0f;
    logit -= static_cast<Real>(presence_ * present);
    logit -= static_cast<Real>(frequency_ * counts_[i]);
  }
}

void Penalties::count(int64_t token) {
  const auto [found, is_new] = place_.emplace(token, ids_.size());
  if (is_new) {
    ids_.push_back(token);
    counts_.push_back(0.0f);
  }
  counts_[found->second] += 1.0f;
}

Chooser::Chooser(const Options& options, const std::vector<int64_t>& prompt_ids,
                 const std::vector<int64_t>& eos_ids, uint64_t seed, uint64_t choice)
    : options_(options),
      needs_logits_(options.needs_logits()),
      eos_ids_(eos_ids.begin(), eos_ids.end()),
      draws_(seed, choice, prompt_ids.size()) {
  eos_ids_.insert(options.stop_token_ids.begin(), options.stop_token_ids.end());
  if (options.penalizes()) penalties_.emplace(options, prompt_ids);
}

int64_t Chooser::choose(float* logits, int64_t vocab_size) {
  if (!best_of(logits, vocab_size).is_sound) {
    throw Fault(FaultKind::kEngine, unsound_message("not numbers", "some of a row"));
  }
  std::vector<float> own;
  if (options_.logprobs) own.assign(logits, logits + vocab_size);
  change(logits, vocab_size);
  int64_t token = 0;
  if (options_.is_greedy()) {
    token = best_of(logits, vocab_size).token;
  } else {
    DrawTask task{logits,         vocab_size,     options_.temperature, options_.top_p,
                  options_.min_p, options_.top_k, draws_.next(),        0};
    if (draw(task) != 0) {
      throw Fault(FaultKind::kEngine,
                  unsound_message("not numbers", "after the options of the answer"));
    }
    token = task.place;
  }
  if (options_.logprobs) logprobs_.push_back(describe(own, token, *options_.logprobs));
  if (penalties_) penalties_->count(token);
  has_ended_ = eos_ids_.count(token) != 0;
  return token;
}

void Chooser::change(float* logits, int64_t vocab_size) {
  if (!options_.has_large_numbers()) {
    if (penalties_) penalties_->apply(logits);
    for (const auto& [token, bias] : options_.logit_bias) logits[token] += static_cast<float>(bias);
    return;
  }
  std::vector<double> row(logits, logits + vocab_size);
  if (penalties_) penalties_->apply(row.data());
  for (const auto& [token, bias] : options_.logit_bias) {
    row[static_cast<size_t>(token)] += static_cast<double>(static_cast<float>(bias));
  }
  const double best = *std::max_element(row.begin(), row.end());
  for (int64_t i = 0; i < vocab_size; ++i) {
    logits[i] = static_cast<float>(row[static_cast<size_t>(i)] - best);
  }
}

}  // namespace bita
