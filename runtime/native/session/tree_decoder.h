// The decode round on token ids: prefill, then draft, verify, accept and commit in one step
// (`runtime/decoding/tree_decoder.py`).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "../decoding/guesses.h"
#include "chooser.h"
#include "drafter.h"
#include "guard.h"
#include "stats.h"
#include "step_host.h"

namespace bita {

// The prompt and the answer so far of one text, and everything else, besides the engine, that its
// steps need.
struct TokenSequence {
  std::vector<int64_t> token_ids;  // all but the last are cached when a decode step runs
  int64_t num_prompt_tokens = 0;
  Drafts drafts;
  std::unique_ptr<Guesses> guesses;  // null if steps do not depend on the text
  Chooser chooser;
  std::optional<Guard> guard;
  std::optional<int64_t> num_reused;  // none until the prompt is started
  bool is_plain = false;  // decoded without drafts, because its step overflowed with them
  int64_t num_read = 0;   // the largest number of tokens that the cache has held

  bool has_answer() const { return static_cast<int64_t>(token_ids.size()) > num_prompt_tokens; }
  void extend(const std::vector<int64_t>& ids);
};

// Rules for building an engine's steps. min_rows: rows of the smallest step. prefill_rows: maximum
// number of prompt tokens in a step. accepts_branches: all nodes may be accepted, not only those of
// the spine.
struct StepRules {
  int64_t min_rows = 1;
  int64_t prefill_rows = 256;
  bool accepts_branches = true;
};

// Decodes sequences, one step at a time, in preallocated buffers. A step needs the engine's turn.
class TreeDecoder {
 public:
  // table: a tree for each state; if it has costs, each text uses smaller trees when its drafts do
  // not pay. pairs: the engine's, or null. Throws a Fault if a tree does not fit.
  TreeDecoder(StepHost& host, std::shared_ptr<const BoundAdapter> adapter, TreeTable table,
              const StepRules& rules, std::shared_ptr<const PairTables> pairs);

  // The longest prompt that leaves room for a step.
  int64_t max_prompt_tokens() const;
  const BoundAdapter& adapter() const { return *adapter_; }
  // Throws a Fault if a prompt is empty, too long, or holds an id outside [0, V).
  void check_prompt(const std::vector<int64_t>& token_ids) const;
  // Whether the cache has no room for another step of a sequence.
  bool is_full(const TokenSequence& sequence) const;
  TokenSequence begin(const std::vector<int64_t>& prompt_ids, Chooser chooser) const;

  // Run the next step of a sequence and return the tokens that it emitted: none for a piece of the
  // prompt before its last, one for the last piece, and 1 to depth + 1 for a round. text: the
  // cached part of the sequence. Throws a Fault.
  std::vector<int64_t> step(TokenSequence& sequence, CachedText& text, Stats& stats);

 private:
  // A tree with everything that a step of it needs.
  struct BoundTree {
    BoundTree(StepHost& host, const Tree& tree, const BoundAdapter& adapter, bool with_logits,
              std::shared_ptr<const PairTables> pairs, const StepRules& rules);

    Tree tree;
    BoundStep step;
    Drafter drafter;
    std::vector<std::vector<int64_t>> children;  // for each node, those that may be accepted
  };
  // guess: tokens that the spine and its siblings hold instead of mask drafts. from_masks: whether
  // only a mask supports the first of them.
  struct PickedTree {
    BoundTree* bound = nullptr;
    Guess guess;
    bool from_masks = false;
  };
  // A summary of the guesses for the places after a text.
  struct Known {
    int64_t level = 0;
    bool from_masks = false;
  };

  BoundTree& bound_tree(size_t number, bool with_logits);
  BoundTree& narrow_tree(bool with_logits);
  PickedTree pick_tree(TokenSequence& sequence, const CachedText& text);
  Known look(const TokenSequence& sequence) const;
  Guess candidates(const TokenSequence& sequence, int64_t count, int64_t min_level) const;
  void next_step(TokenSequence& sequence, CachedText& text, Stats& stats);
  void read(TokenSequence& sequence, CachedText& text, int64_t num_missing);
  void read_piece(const int64_t* tokens, int64_t count, CachedText& text);
  void read_end(TokenSequence& sequence, CachedText& text, int64_t count);
  void advance(TokenSequence& sequence, CachedText& text, Stats& stats);
  int64_t choose(TokenSequence& sequence, BoundStep& step, int64_t row) const;

  StepHost& host_;
  std::shared_ptr<const BoundAdapter> adapter_;
  TreeTable table_;
  std::unique_ptr<GuardedTrees> guarded_;  // null if the table has no costs
  const StepRules rules_;
  const int64_t depth_;
  std::shared_ptr<const PairTables> pairs_;
  std::map<std::pair<size_t, bool>, std::unique_ptr<BoundTree>> bound_;
  std::unique_ptr<BoundTree> narrow_[2];
  std::unique_ptr<BoundStep> whole_piece_;  // for long prompts
};

}  // namespace bita
