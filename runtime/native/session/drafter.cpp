#include "drafter.h"

#include <algorithm>
#include <optional>
#include <tuple>

#include "../decoding/draft_order.h"

namespace bita {

namespace {

// The drafts of a mask as children of a token, best first.
class Ordered {
 public:
  Ordered(const PairTables& pairs, const Drafts& drafts)
      : pairs_(pairs), drafts_(drafts), tokens_(static_cast<size_t>(drafts.num_ranks)) {}

  int64_t at(int64_t mask, int64_t parent, int64_t rank) {
    if (mask != mask_ || parent != parent_) order(mask, parent);
    return tokens_[static_cast<size_t>(rank)];
  }

 private:
  void order(int64_t mask, int64_t parent) {
    DraftOrder task{};
    task.pairs = {pairs_.left, pairs_.right, pairs_.rank};
    task.ids = drafts_.ids_of(mask);
    task.logits = drafts_.logits_of(mask);
    task.count = drafts_.num_ranks;
    task.before = parent;
    task.scale = 1.0f;
    task.ordered = tokens_.data();
    if (order_drafts(task) != 0) {  // more drafts than can be ordered: keep the mask's order
      std::copy(task.ids, task.ids + task.count, tokens_.begin());
    }
    mask_ = mask;
    parent_ = parent;
  }

  const PairTables& pairs_;
  const Drafts& drafts_;
  std::vector<int64_t> tokens_;
  int64_t mask_ = -1, parent_ = -1;
};

}  // namespace

void Drafts::read(const int64_t* top_ids, const float* top_logits, int64_t count) {
  num_masks = count;
  std::copy(top_ids, top_ids + count * num_ranks, ids.begin());
  std::copy(top_logits, top_logits + count * num_ranks, logits.begin());
}

Drafter::Drafter(const Tree& tree, std::shared_ptr<const PairTables> pairs)
    : pairs_(std::move(pairs)) {
  for (int64_t node = 1; node < tree.num_nodes(); ++node) {
    const auto at = static_cast<size_t>(node);
    const int64_t depth = tree.depths()[at], parent = tree.parents()[at];
    const bool is_on_spine = depth - 1 <= tree.spine_length() && parent == depth - 1;
    nodes_.push_back({node, parent, depth - 1, tree.ranks()[at] - 1, is_on_spine});
  }
  std::sort(nodes_.begin(), nodes_.end(), [](const Node& a, const Node& b) {
    return std::tie(a.mask, a.parent, a.node) < std::tie(b.mask, b.parent, b.node);
  });
}

void Drafter::fill(int64_t* tokens, const Drafts& drafts, const Guess& guess) const {
  std::optional<Ordered> ordered;
  if (pairs_) ordered.emplace(*pairs_, drafts);
  for (const Node& node : nodes_) {
    int64_t& token = tokens[node.node];
    if (node.is_on_spine && node.mask < static_cast<int64_t>(guess.size())) {
      const auto& candidates = guess[static_cast<size_t>(node.mask)];
      const auto rank = static_cast<size_t>(node.rank);
      if (rank < candidates.size()) token = candidates[rank];
    } else if (ordered) {
      token = ordered->at(node.mask, tokens[node.parent], node.rank);
    } else {
      token = drafts.ids_of(node.mask)[node.rank];
    }
  }
}

}  // namespace bita
