// The order of drafts, compared with a plain computation in doubles.
#include "../decoding/draft_order.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "../kernels/numbers.h"
#include "check.h"

namespace bita::tests {
namespace {

constexpr int64_t kVocab = 300;

struct Drafts {
  std::vector<uint16_t> left, right;
  std::vector<int64_t> ids, ordered;
  std::vector<float> logits;
  DraftOrder task{};

  Drafts(int64_t count, int64_t rank, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    left.resize(kVocab * rank);
    right.resize(kVocab * rank);
    for (std::vector<uint16_t>* side : {&left, &right})
      for (uint16_t& value : *side) value = to_half(normal(random));
    for (int64_t token = 0; token < kVocab; ++token) ids.push_back(token);
    std::shuffle(ids.begin(), ids.end(), random);
    ids.resize(count);
    for (int64_t i = 0; i < count; ++i) logits.push_back(normal(random));
    ordered.resize(count);
    task.pairs.left = rank ? left.data() : nullptr;
    task.pairs.right = rank ? right.data() : nullptr;
    task.pairs.rank = rank;
    task.ids = ids.data();
    task.logits = logits.data();
    task.count = count;
    task.before = 17;
    task.scale = 0.63f;
    task.ordered = ordered.data();
  }

  void guess(int64_t token, float bonus) {
    task.guesses[task.num_guesses] = token;
    task.bonuses[task.num_guesses++] = bonus;
  }

  double mask_score(int64_t place) const {
    double score = logits[place];
    for (int64_t i = 0; i < task.pairs.rank; ++i)
      score += static_cast<double>(from_half(left[task.before * task.pairs.rank + i])) *
               from_half(right[ids[place] * task.pairs.rank + i]);
    return task.scale * score;
  }

  std::vector<std::pair<double, int64_t>> wanted() const {
    std::vector<std::pair<double, int64_t>> all;
    double lowest = INFINITY;
    for (size_t i = 0; i < ids.size(); ++i) {
      all.push_back({mask_score(static_cast<int64_t>(i)), ids[i]});
      lowest = std::min(lowest, all.back().first);
    }
    for (int64_t g = 0; g < task.num_guesses; ++g) {
      auto place = std::find_if(all.begin(), all.end(),
                                [&](const auto& each) { return each.second == task.guesses[g]; });
      if (place == all.end()) place = all.insert(all.end(), {lowest - task.scale, task.guesses[g]});
      place->first += task.bonuses[g];
    }
    std::stable_sort(all.begin(), all.end(),
                     [](const auto& a, const auto& b) { return a.first > b.first; });
    return all;
  }

  void check(const std::string& name) {
    expect(order_drafts(task) == 0, name + " is done");
    const auto all = wanted();
    double total = 0;
    for (const auto& each : all) total += std::exp(each.first - all[0].first);
    for (size_t i = 0; i < ordered.size(); ++i)
      expect(ordered[i] == all[i].second, name + ", place " + std::to_string(i));
    expect(std::abs(task.share - 1 / total) < 1e-4, name + ", share");
  }
};

const Adds orders("drafts are ordered by logits, pair scores and guesses", [] {
  for (const int64_t rank : {0, 1, 32, 33})
    for (const int64_t count : {1, 2, 16}) {
      const std::string name = std::to_string(count) + " drafts, rank " + std::to_string(rank);
      Drafts plain(count, rank, 3);
      plain.check(name);
      Drafts guessed(count, rank, 4);
      guessed.guess(guessed.ids[count / 2], 2.5f);
      guessed.guess(kVocab + 5, 4.0f);  // not a draft, and in no table
      guessed.check(name + ", two guesses");
    }
});

const Adds equal("equal scores keep their order", [] {
  Drafts drafts(16, 0, 5);
  std::fill(drafts.logits.begin(), drafts.logits.end(), 1.5f);
  expect(order_drafts(drafts.task) == 0, "is done");
  expect_same(drafts.ordered, drafts.ids, "order");
});

const Adds refused("counts out of range are refused", [] {
  Drafts drafts(2, 0, 6);
  for (const int64_t count : {int64_t{0}, int64_t{-1}, kMaxDrafts + 1}) {
    drafts.task.count = count;
    expect(order_drafts(drafts.task) == -1, std::to_string(count) + " drafts");
  }
  drafts.task.count = 2;
  for (const int64_t guesses : {int64_t{-1}, kMaxGuesses + 1}) {
    drafts.task.num_guesses = guesses;
    expect(order_drafts(drafts.task) == -1, std::to_string(guesses) + " guesses");
  }
});

}  // namespace
}  // namespace bita::tests
