#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "../kernels/isa.h"

namespace bita {
namespace {

constexpr int64_t kMaxRanked = 128;  // best tokens that one pass over the row can find

// A row of logits, later of weights, with the original positions of its tokens.
class Row {
 public:
  Row(float* values, int64_t count) : values_(values), count_(count) {}

  float* values() { return values_; }
  int64_t count() const { return count_; }
  int64_t place(int64_t index) const {
    return places_.empty() ? index : places_[static_cast<size_t>(index)];
  }

  // Remove values below `least`. The remaining ones move to the front.
  void keep_from(float least) {
    std::vector<int64_t> places;
    int64_t kept = 0;
    for (int64_t i = 0; i < count_; ++i) {
      if (!(values_[i] >= least)) continue;
      places.push_back(place(i));
      values_[kept++] = values_[i];
    }
    places_ = std::move(places);
    count_ = kept;
  }

 private:
  float* values_;
  int64_t count_;
  std::vector<int64_t> places_;  // empty if all are at their original positions
};

// The best logit of a row, and the k-th best.
struct Best {
  float first = 0.0f;
  float last = 0.0f;
};

Best best_of(const float* logits, int64_t count, int64_t k) {
  if (k > kMaxRanked) {
    std::vector<float> ordered(logits, logits + count);
    std::nth_element(ordered.begin(), ordered.begin() + (k - 1), ordered.end(), std::greater<>());
    return {*std::max_element(ordered.begin(), ordered.begin() + k),
            ordered[static_cast<size_t>(k - 1)]};
  }
  std::array<float, kMaxRanked> found;
  std::array<int64_t, kMaxRanked> ids;
  Ranking ranking{found.data(), ids.data(), k, 0, false};
  kernels().rank(logits, count, 0, ranking);
  if (ranking.has_nan || ranking.count < k) {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    return {nan, nan};
  }
  return {found[0], found[static_cast<size_t>(k - 1)]};
}

// Cumulative sums of all blocks, in double precision.
std::vector<double> sums_of(Row& row) {
  std::vector<float> blocks(static_cast<size_t>((row.count() + kSumBlock - 1) / kSumBlock));
  kernels().sum_blocks(row.values(), row.count(), blocks.data());
  std::vector<double> sums(blocks.begin(), blocks.end());
  for (size_t i = 1; i < sums.size(); ++i) sums[i] += sums[i - 1];
  return sums;
}

// The smallest weight among the heaviest tokens that together hold `top_p` of all weight. Tokens
// below an even share of the remaining weight are not sorted: together they weigh less than it.
float nucleus_threshold(Row& row, double top_p) {
  const double total = sums_of(row).back();
  const double share = (1.0 - top_p) * total / static_cast<double>(row.count());
  std::vector<float> heavy;
  for (int64_t i = 0; i < row.count(); ++i) {
    if (static_cast<double>(row.values()[i]) >= share) heavy.push_back(row.values()[i]);
  }
  std::sort(heavy.begin(), heavy.end(), std::greater<>());
  double sum = 0.0;
  for (const float weight : heavy) {
    sum += static_cast<double>(weight);
    if (sum >= top_p * total) return weight;
  }
  return heavy.back();
}

// The first place at which the cumulative weight exceeds the fraction `number` of the total.
int64_t place_at(Row& row, double number) {
  const std::vector<double> sums = sums_of(row);
  const double target = number * sums.back();
  const auto after = std::upper_bound(sums.begin(), sums.end(), target);
  const int64_t last_block = static_cast<int64_t>(sums.size()) - 1;
  const int64_t block = std::min<int64_t>(after - sums.begin(), last_block);
  const double rest = target - (block ? sums[static_cast<size_t>(block - 1)] : 0.0);
  const int64_t first = block * kSumBlock, end = std::min(first + kSumBlock, row.count());
  int64_t last = first;  // the last place with any weight, in case the block's sum was rounded
  double sum = 0.0;
  for (int64_t i = first; i < end; ++i) {
    sum += static_cast<double>(row.values()[i]);
    if (sum > rest) return i;
    if (row.values()[i] > 0.0f) last = i;
  }
  return last;
}

bool fits(const DrawTask& task) {
  return task.logits && task.count > 0 && task.temperature > 0 && task.top_p > 0 &&
         task.top_p <= 1 && task.min_p >= 0 && task.min_p <= 1 && task.top_k >= 0 &&
         task.number >= 0 && task.number < 1;
}

}  // namespace

int draw(DrawTask& task) {
  if (!fits(task)) return -1;
  Row row(task.logits, task.count);
  const bool cuts = task.top_k > 0 && task.top_k < task.count;
  const Best best = best_of(task.logits, task.count, cuts ? task.top_k : 1);
  if (!std::isfinite(best.first)) return -1;
  if (cuts) row.keep_from(best.last);
  kernels().weigh(row.values(), row.count(), best.first, static_cast<float>(task.temperature));
  auto least = static_cast<float>(task.min_p);  // the best one weighs 1
  if (task.top_p < 1) least = std::max(least, nucleus_threshold(row, task.top_p));
  if (least > 0) row.keep_from(least);
  task.place = row.place(place_at(row, task.number));
  return 0;
}

double Draws::next() {
  constexpr uint64_t kMultipliers[] = {0xD2E7470EE14C6C93u, 0xCA5A826395121157u};
  constexpr uint64_t kSteps[] = {0x9E3779B97F4A7C15u, 0xBB67AE8584CAA73Bu};
  constexpr int kRounds = 10;
  std::array<uint64_t, 4> block = {++position_, 0, 0, 0};
  std::array<uint64_t, 2> key = key_;
  for (int round = 0; round < kRounds; ++round) {
    __extension__ using Wide = unsigned __int128;
    const Wide first = static_cast<Wide>(kMultipliers[0]) * block[0];
    const Wide second = static_cast<Wide>(kMultipliers[1]) * block[2];
    block = {static_cast<uint64_t>(second >> 64) ^ block[1] ^ key[0], static_cast<uint64_t>(second),
             static_cast<uint64_t>(first >> 64) ^ block[3] ^ key[1], static_cast<uint64_t>(first)};
    key = {key[0] + kSteps[0], key[1] + kSteps[1]};
  }
  return static_cast<double>(block[0] >> 11) * 0x1p-53;
}

}  // namespace bita
