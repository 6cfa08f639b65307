#include "guesses.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "guess_confidence.h"

namespace bita {
namespace {

constexpr int64_t kSureMatch = 8;  // tokens of a match from which the table is ignored

std::vector<double> take(const float*& from, int64_t count, bool exponential) {
  std::vector<double> taken(from, from + count);
  from += count;
  if (exponential)
    for (double& each : taken) each = std::exp(each);
  return taken;
}

bool fits(const GuessSources& sources) {
  const bool has_table = sources.marks && sources.values;
  const bool is_power = sources.num_slots > 1 && !(sources.num_slots & (sources.num_slots - 1));
  return (has_table ? is_power : !sources.marks) && !sources.pairs.left == !sources.pairs.right &&
         (!sources.pairs.left || sources.pairs.rank > 0) && sources.max_masks >= 0 &&
         sources.num_ranks > 0 && sources.num_ranks <= kMaxDrafts && sources.bonuses &&
         (!sources.max_masks || (sources.ids && sources.logits));
}

}  // namespace

Guesses::Guesses(const GuessSources& sources)
    : sources_(sources), table_{sources.marks, sources.values, sources.num_slots} {
  if (!fits(sources)) throw std::invalid_argument("sources of guesses are out of range");
  const float* bonuses = sources.bonuses + 1;  // after the scale of masks
  text_with_mask_ = take(bonuses, kMaxMatch, false);
  table_with_mask_ = take(bonuses, kTableSteps, false);
  text_alone_ = take(bonuses, kMaxMatch, true);
  table_alone_ = take(bonuses, kTableSteps, true);
  agree_alone_ = std::exp(static_cast<double>(*bonuses));
}

void Guesses::start() {
  index_.clear();
  last_.clear();
  num_last_ = 0;
  places_.clear();
}

void Guesses::extend(const int64_t* token_ids, int64_t count) {
  index_.extend(token_ids, count);
  last_.resize(static_cast<size_t>(num_last_));
  last_.insert(last_.end(), token_ids + std::max(count - kLongestRun, int64_t{0}),
               token_ids + count);
  if (static_cast<int64_t>(last_.size()) > kLongestRun)
    last_.erase(last_.begin(), last_.end() - kLongestRun);
  num_last_ = static_cast<int64_t>(last_.size());
  places_.clear();
}

int Guesses::look(int64_t num_masks, int64_t count, GuessesFound& found) {
  if (num_masks < 0 || num_masks > sources_.max_masks || count < 0 || count > found.max_places ||
      found.width < std::max(sources_.num_ranks, int64_t{2}))
    return -1;
  const Place& first = place(0, num_masks);
  found.share = first.share;
  found.from_masks = first.from_masks;
  found.level = level(num_masks);
  found.num_places = 0;
  for (int64_t number = 0; number < count; ++number) {
    const Place& next = place(number, num_masks);
    if (next.candidates.empty()) break;
    std::copy(next.candidates.begin(), next.candidates.end(), found.tokens + number * found.width);
    found.lengths[number] = static_cast<int64_t>(next.candidates.size());
    ++found.num_places;
  }
  return 0;
}

int64_t Guesses::level(int64_t num_masks) {
  const double first = place(0, num_masks).share;
  return level_of(first, looks_further(first) ? place(1, num_masks).share : 0.0);
}

const Guesses::Place& Guesses::place(int64_t number, int64_t num_masks) {
  while (static_cast<int64_t>(places_.size()) <= number) {
    Place next = next_place(num_masks);
    if (!next.candidates.empty()) last_.push_back(next.candidates[0]);
    places_.push_back(std::move(next));
  }
  return places_[static_cast<size_t>(number)];
}

Guesses::Place Guesses::next_place(int64_t num_masks) {
  const int64_t number = static_cast<int64_t>(places_.size());
  if (!num_last_ || (number && places_.back().candidates.empty())) return {};
  Match text;
  if ((!number || places_.back().follows_text) && index_.match_length())
    text = {std::min(index_.match_length() + number, kMaxMatch), index_.following(number)};
  Continuation table;
  if (text.length < kSureMatch)
    table = table_.find(last_.data(), static_cast<int64_t>(last_.size()));
  return number < num_masks ? with_mask(number, last_.back(), text, table)
                            : without_mask(text, table);
}

Guesses::Place Guesses::with_mask(int64_t mask, int64_t before, Match text, Continuation table) {
  Place found;
  found.candidates.resize(static_cast<size_t>(sources_.num_ranks));
  DraftOrder task{};
  task.pairs = sources_.pairs;
  task.ids = sources_.ids + mask * sources_.num_ranks;
  task.logits = sources_.logits + mask * sources_.num_ranks;
  task.count = sources_.num_ranks;
  task.before = before;
  task.scale = sources_.bonuses[0];
  task.ordered = found.candidates.data();
  const bool agree = text.length && table.percent && text.token == table.token;
  double text_bonus = 0.0, table_bonus = 0.0;
  if (text.length) text_bonus = text_with_mask_[static_cast<size_t>(text.length - 1)];
  if (table.percent) table_bonus = table_with_mask_[static_cast<size_t>(table.percent / 10)];
  const auto guess = [&task](int64_t token, double bonus) {
    task.guesses[task.num_guesses] = token;
    task.bonuses[task.num_guesses++] = static_cast<float>(bonus);
  };
  if (text.length) guess(text.token, agree ? text_bonus + table_bonus : text_bonus);
  if (table.percent && !agree) guess(table.token, table_bonus);
  if (order_drafts(task) != 0) return {};
  const int64_t best = found.candidates[0];
  found.share = static_cast<double>(task.share);
  found.follows_text = text.length && best == text.token;
  found.from_masks = !found.follows_text && !(table.percent && best == table.token);
  return found;
}

Guesses::Place Guesses::without_mask(Match text, Continuation table) const {
  double weight = text.length ? text_alone_[static_cast<size_t>(text.length - 1)] : 0.0;
  double other = table.percent ? table_alone_[static_cast<size_t>(table.percent / 10)] : 0.0;
  if (text.length && table.percent && text.token == table.token) {
    weight *= other * agree_alone_;
    other = 0.0;
  }
  Place found;
  found.share = std::max(weight, other) / (1.0 + weight + other);
  found.follows_text = weight > 0.0 && weight >= other;
  if (weight > 0.0) found.candidates.push_back(text.token);
  if (other > 0.0)
    found.candidates.insert(found.follows_text ? found.candidates.end() : found.candidates.begin(),
                            table.token);
  return found;
}

}  // namespace bita
