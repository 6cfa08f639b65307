#include "draft_order.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "../kernels/numbers.h"

namespace bita {
namespace {

constexpr float kAbsent =
    1.0f;  // a guess that is not a draft starts this far below the lowest draft

struct Candidate {
  int64_t token;
  float score;
};

// The left pair vector of the preceding token; empty without pair scores.
std::vector<float> left_side(const DraftOrder& task) {
  std::vector<float> left(task.pairs.left ? task.pairs.rank : 0);
  for (size_t i = 0; i < left.size(); ++i)
    left[i] = from_half(task.pairs.left[task.before * task.pairs.rank + static_cast<int64_t>(i)]);
  return left;
}

float pair_score(const std::vector<float>& left, const uint16_t* right) {
  float sum = 0.0f;
  for (size_t i = 0; i < left.size(); ++i) sum += left[i] * from_half(right[i]);
  return sum;
}

// List the candidates of a task with their scores; returns their number.
int64_t list_candidates(const DraftOrder& task, Candidate* found) {
  const std::vector<float> left = left_side(task);
  float lowest = 0.0f;
  for (int64_t i = 0; i < task.count; ++i) {
    const float pairs =
        left.empty() ? 0.0f : pair_score(left, task.pairs.right + task.ids[i] * task.pairs.rank);
    found[i] = {task.ids[i], task.scale * (task.logits[i] + pairs)};
    lowest = i ? std::min(lowest, found[i].score) : found[i].score;
  }
  int64_t size = task.count;
  for (int64_t g = 0; g < task.num_guesses; ++g) {
    Candidate* const end = found + size;
    Candidate* place = std::find_if(
        found, end, [&](const Candidate& each) { return each.token == task.guesses[g]; });
    if (place == end) {
      *place = {task.guesses[g], lowest - task.scale * kAbsent};
      ++size;
    }
    place->score += task.bonuses[g];
  }
  return size;
}

}  // namespace

int order_drafts(DraftOrder& task) {
  if (task.count < 1 || task.count > kMaxDrafts || task.num_guesses < 0 ||
      task.num_guesses > kMaxGuesses)
    return -1;
  Candidate found[kMaxDrafts + kMaxGuesses];
  const int64_t size = list_candidates(task, found);
  std::stable_sort(found, found + size,
                   [](const Candidate& a, const Candidate& b) { return a.score > b.score; });
  float total = 0.0f;
  for (int64_t i = 0; i < size; ++i) total += std::exp(found[i].score - found[0].score);
  for (int64_t i = 0; i < task.count; ++i) task.ordered[i] = found[i].token;
  task.share = 1.0f / total;
  return 0;
}

}  // namespace bita
