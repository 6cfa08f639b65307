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

// Prompt and answer so far of one text, and all that a step of it needs besides the engine.
struct TokenSequence {
  std::vector<int64_t> token_ids;  // all but the last are cached when a decode step runs
  int64_t num_prompt_tokens = 0;
  Drafts drafts;
  std::unique_ptr<Guesses> guesses;  // null: steps do not depend on the text
  Chooser chooser;
  std::optional<Guard> guard;
  std::optional<int64_t> num_reused;  // none until the prompt is begun
  bool is_plain = false;  // decoded without drafts, because its step overflowed with them
  int64_t num_read = 0;   // tokens that the cache has held, at the most

  bool has_answer() const { return static_cast<int64_t>(token_ids.size()) > num_prompt_tokens; }
  void extend(const std::vector<int64_t>& ids);
};

// How an engine's steps are made. min_rows: rows of the smallest step. prefill_rows: most prompt
// tokens of a step. accepts_branches: all nodes may be accepted, not those of the spine alone.
struct StepRules {
  int64_t min_rows = 1;
  int64_t prefill_rows = 256;
  bool accepts_branches = true;
};

// Decodes sequences, a step at a time, over preallocated buffers. Whoever steps has the engine's
// turn.
class TreeDecoder {
 public:
  // table: a tree for each state; of one with costs, each text takes smaller trees where its drafts
  // do not pay. pairs: of the engine, null for none. Throws a Fault if a tree does not fit.
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

  // Run the step that a sequence needs next and return the tokens that it emitted: none for a piece
  // of the prompt that is not its last, one for that, 1 to depth + 1 for a round.
  // text: what is cached of the sequence. Throws a Fault.
  std::vector<int64_t> step(TokenSequence& sequence, CachedText& text, Stats& stats);

 private:
  // A tree with all that a step of it needs.
  struct BoundTree {
    BoundTree(StepHost& host, const Tree& tree, const BoundAdapter& adapter, bool with_logits,
              std::shared_ptr<const PairTables> pairs, const StepRules& rules);

    Tree tree;
    BoundStep step;
    Drafter drafter;
    std::vector<std::vector<int64_t>> children;  // of each node, those that may be accepted
  };
  // guess: what the spine and its siblings hold instead of mask drafts. from_masks: whether only a
  // mask says the first of it.
  struct PickedTree {
    BoundTree* bound = nullptr;
    Guess guess;
    bool from_masks = false;
  };
  // What is known of the places after a text.
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
  int64_t chosen(TokenSequence& sequence, BoundStep& step, int64_t row) const;

  StepHost& host_;
  std::shared_ptr<const BoundAdapter> adapter_;
  TreeTable table_;
  std::unique_ptr<GuardedTrees> guarded_;  // null for a table without costs
  const StepRules rules_;
  const int64_t depth_;
  std::shared_ptr<const PairTables> pairs_;
  std::map<std::pair<size_t, bool>, std::unique_ptr<BoundTree>> bound_;
  std::unique_ptr<BoundTree> narrow_[2];
  std::unique_ptr<BoundStep> whole_piece_;  // of a long prompt
};

}  // namespace bita
