// Fills the nodes of a tree from drafts and guesses (`runtime/decoding/drafting.py`).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "../engine/pair_tables.h"
#include "../engine/tree.h"

namespace bita {

// The top tokens and logits of a text's most recently accepted mask group: [max_masks, num_ranks].
// Their addresses do not change.
struct Drafts {
  Drafts(int64_t max_masks, int64_t ranks)
      : num_ranks(ranks),
        ids(static_cast<size_t>(max_masks * ranks)),
        logits(static_cast<size_t>(max_masks * ranks)) {}

  // Copy the drafts of one group, [count, k].
  void read(const int64_t* top_ids, const float* top_logits, int64_t count);
  const int64_t* ids_of(int64_t mask) const { return ids.data() + mask * num_ranks; }
  const float* logits_of(int64_t mask) const { return logits.data() + mask * num_ranks; }

  const int64_t num_ranks;
  int64_t num_masks = 0;
  std::vector<int64_t> ids;
  std::vector<float> logits;
};

// For each depth, the candidates of the spine's node and its siblings, best first.
using Guess = std::vector<std::vector<int64_t>>;

class Drafter {
 public:
  Drafter(const Tree& tree, std::shared_ptr<const PairTables> pairs);

  // Write drafts into the token ids of the nodes, [N], whose root is set already. Nodes without a
  // draft keep an old one: a node is only accepted if it holds the token that the model chooses.
  void fill(int64_t* tokens, const Drafts& drafts, const Guess& guess) const;

 private:
  // A node that a mask drafts. mask: index of the mask in its group. rank: from 0.
  struct Node {
    int64_t node = 0, parent = 0, mask = 0, rank = 0;
    bool is_on_spine = false;  // whether its parent is on the spine
  };

  std::shared_ptr<const PairTables> pairs_;
  std::vector<Node> nodes_;  // by depth, then by parent
};

}  // namespace bita
