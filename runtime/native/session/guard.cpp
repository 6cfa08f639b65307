#include "guard.h"

#include <algorithm>

namespace bita {

namespace {

// Times in steps of plain decoding, each of which yields one token.
constexpr double kMaxLoss = 3.0;       // of a text at its beginning
constexpr double kLossAToken = 0.006;  // growth of that limit with each token of the answer
constexpr double kCredit = 2.0;        // of each source at the beginning
constexpr double kMaxCredit = 3.0;     // gains beyond this are dropped
constexpr double kMaxDebt = 1.0;       // of guesses that are only judged
constexpr double kProbe = 0.5;         // credit of masks when they are tried again
constexpr int64_t kFirstPause = 32;    // tokens until masks are tried again; doubles every time
constexpr int64_t kNothing = -1;

}  // namespace

GuardedTrees::GuardedTrees(const TreeTable& table) : trees_(table.trees) {
  const auto add = [&](const Tree& tree) {
    if (std::find(trees_.begin(), trees_.end(), tree) == trees_.end()) trees_.push_back(tree);
  };
  for (const Tree& tree : table.trees) add(tree.without_masks());
  add(Tree::root_only());
  const auto cost = [&](int64_t rows) { return table.costs[static_cast<size_t>(rows - 1)]; };
  guess_loss_ = cost(std::min<int64_t>(2, static_cast<int64_t>(table.costs.size()))) - 1;
  const size_t root = number_of(Tree::root_only());
  for (size_t n = 0; n < table.trees.size(); ++n) {
    const Tree& tree = table.trees[n];
    choices_.push_back({n, number_of(tree.without_masks()), root, cost(tree.num_rows()) - 1,
                        cost(tree.num_nodes()) - 1, tree.num_nodes() > 1,
                        tree.num_rows() > tree.num_nodes(),
                        tree.spine_length() ? tree.min_level() : 0});
  }
}

size_t GuardedTrees::number_of(const Tree& tree) const {
  return static_cast<size_t>(std::find(trees_.begin(), trees_.end(), tree) - trees_.begin());
}

Guard::Guard(const GuardedTrees& trees)
    : trees_(&trees),
      choice_(&trees.choices_[0]),
      of_guesses_(kCredit),
      of_masks_(kCredit),
      pause_(kFirstPause) {}

size_t Guard::pick(size_t number, int64_t level, bool from_masks) {
  choice_ = &trees_->choices_[number];
  guesses_ = choice_->min_level > 0 && choice_->min_level <= level && !from_masks;
  size_t picked = choice_->root;
  if (!guesses_ || of_guesses_ >= 0) {
    const double to_lose = gain_ + kMaxLoss + kLossAToken * static_cast<double>(num_tokens_);
    const bool wants_masks = num_tokens_ >= masks_from_;
    if (choice_->whole_loss <= to_lose && (wants_masks || !choice_->has_masks)) {
      picked = choice_->whole;
    } else if (choice_->lean_loss <= to_lose) {
      picked = choice_->lean;
    }
  }
  picked_ = static_cast<int64_t>(picked);
  judged_level_ = guesses_ && picked == choice_->root ? choice_->min_level : 0;
  return picked;
}

bool Guard::count(int64_t num_tokens, bool is_right) {
  const int64_t picked = picked_;
  picked_ = kNothing;
  if (picked == kNothing) return false;
  const auto number = static_cast<size_t>(picked);
  num_tokens_ += num_tokens;
  if (number == choice_->root && choice_->root != choice_->whole) {
    if (guesses_) enter_guesses((is_right ? 1.0 : 0.0) - trees_->guess_loss_);
    return true;
  }
  const double gain = static_cast<double>(num_tokens - 1) - choice_->lean_loss;
  const double rows_loss =
      number == choice_->whole ? choice_->whole_loss - choice_->lean_loss : 0.0;
  gain_ += gain - rows_loss;
  if (guesses_) {
    enter_guesses(gain);
  } else if (choice_->has_nodes) {
    enter_masks(gain);
  }
  if (rows_loss != 0.0) enter_masks(-rows_loss);
  return number != choice_->whole;
}

void Guard::enter_guesses(double gain) {
  of_guesses_ = std::max(std::min(of_guesses_ + gain, kMaxCredit), -kMaxDebt);
}

void Guard::enter_masks(double gain) {
  of_masks_ = std::min(of_masks_ + gain, kMaxCredit);
  if (of_masks_ >= 0 || num_tokens_ < masks_from_) return;
  of_masks_ = kProbe;
  masks_from_ = num_tokens_ + pause_;
  pause_ *= 2;
}

}  // namespace bita
