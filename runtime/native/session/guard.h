// Prevents drafts from costing a text more than they gain (`runtime/decoding/guard.py`).
#pragma once

#include <cstdint>
#include <vector>

#include "../engine/tree.h"

namespace bita {

// The trees of a table with `costs`, and those that a guard may use instead. The table's trees keep
// their numbers; the others follow, without duplicates.
class GuardedTrees {
 public:
  explicit GuardedTrees(const TreeTable& table);

  const std::vector<Tree>& trees() const { return trees_; }

 private:
  friend class Guard;

  // The alternatives to one tree of the table: numbers of the tree, of the tree without mask rows,
  // and of the root alone. losses: a step's cost beyond that of a plain one. min_level: of a spine
  // that may hold a guess, otherwise 0.
  struct Choice {
    size_t whole = 0, lean = 0, root = 0;
    double whole_loss = 0.0, lean_loss = 0.0;
    bool has_nodes = false, has_masks = false;
    int64_t min_level = 0;
  };

  size_t number_of(const Tree& tree) const;

  std::vector<Tree> trees_;
  std::vector<Choice> choices_;
  double guess_loss_ = 0.0;  // of a tree with one draft
};

// The accounts of one text, in steps of plain decoding. Call `pick` before each step and `count`
// after it.
class Guard {
 public:
  explicit Guard(const GuardedTrees& trees);

  // The level that a guess needs to be judged after the step although the picked tree does not hold
  // it; 0 if there is none to judge.
  int64_t judged_level() const { return judged_level_; }

  // Pick the tree of the next step; returns its number. number: the state's tree in the table.
  // level: confidence in its guess. from_masks: whether the guess is a mask's draft that nothing
  // else supports.
  size_t pick(size_t number, int64_t level, bool from_masks);

  // Record a step. is_right: whether the first of the tokens that it emitted equals the guess's
  // first. Returns whether the step's tree was smaller than the state's.
  bool count(int64_t num_tokens, bool is_right);

 private:
  void enter_guesses(double gain);
  void enter_masks(double gain);

  const GuardedTrees* trees_;
  const GuardedTrees::Choice* choice_;
  int64_t judged_level_ = 0;
  int64_t picked_ = -1;  // none
  bool guesses_ = false;
  double gain_ = 0.0;  // over all steps
  int64_t num_tokens_ = 0;
  double of_guesses_, of_masks_;
  int64_t masks_from_ = 0;  // length of the answer at which masks are tried again
  int64_t pause_;
};

}  // namespace bita
