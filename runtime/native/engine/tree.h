// The static tree of one step, and a table that assigns a tree to each state of the decoder.
//
// A node of depth d >= 1 and rank r holds the draft that ranks r-th at mask d - 1 of the most
// recently accepted group; the root (node 0) holds the last emitted token. The rows of a step are
// ordered: root, spine (the rank-1 chain), other nodes by depth and path, then the mask groups in
// node order (`bita/tree.py`, `bita/tree_table.py`).
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "../base/json.h"

namespace bita {

using Path = std::vector<int64_t>;  // ranks from the root to a node

constexpr int64_t kMaxLevel = 12;  // highest level of confidence in a guess

class Tree {
 public:
  // A root only: plain autoregressive decoding or, with masks, the tree of a prefill.
  static Tree root_only(int64_t num_masks = 0);
  // A chain of the best drafts of `depth` masks, with num_masks masks on each node.
  static Tree chain(int64_t depth, int64_t num_masks);
  // Throws a Fault that lists every fault.
  static Tree from_json(const Json& data);

  int64_t num_nodes() const { return static_cast<int64_t>(parents_.size()); }
  int64_t num_rows() const;
  int64_t max_masks() const;
  int64_t max_depth() const;
  int64_t max_rank() const;  // 0 for the root only
  int64_t spine_length() const { return spine_length_; }
  int64_t min_level() const { return min_level_; }
  bool is_ar() const { return num_nodes() == 1; }

  const std::vector<int64_t>& parents() const { return parents_; }
  const std::vector<int64_t>& ranks() const { return ranks_; }
  const std::vector<int64_t>& num_masks() const { return num_masks_; }
  const std::vector<int64_t>& depths() const { return depths_; }
  std::vector<std::vector<int64_t>> children() const;  // the children of each node, by rank
  Path path(int64_t node) const;
  int64_t first_mask_row(int64_t node) const;  // first row of the mask group after a node

  Tree without_masks() const;

  // Add the reasons why an engine cannot run this tree to `faults`. num_slots: cache slots after
  // the prefix.
  void add_misfits(int64_t num_masks, int64_t num_ranks, int64_t num_slots,
                   const std::string& prefix, std::vector<std::string>& faults) const;

  bool operator==(const Tree& other) const {
    return parents_ == other.parents_ && ranks_ == other.ranks_ && num_masks_ == other.num_masks_ &&
           min_level_ == other.min_level_;
  }
  bool operator<(const Tree& other) const;

 private:
  Tree(std::vector<std::pair<Path, int64_t>> nodes, int64_t min_level);

  std::vector<int64_t> parents_, ranks_, num_masks_, depths_;
  int64_t min_level_ = 0, spine_length_ = 0;
};

// A tree for each state of the decoder.
//
// by_state[d][m]: index of the tree for a step with drafts from d masks; levels: the minimum level
// of each m, ascending from 0. costs: the time of steps of 1, 2, ... rows, relative to a step of
// one row; empty if unknown.
struct TreeTable {
  std::vector<Tree> trees;
  std::vector<int64_t> levels;
  std::vector<std::vector<int64_t>> by_state;
  std::vector<double> costs;

  static TreeTable of(Tree tree);
  // Parse a tree or a table. Throws a Fault that lists every fault.
  static TreeTable from_json(const Json& data);

  size_t number(int64_t num_drafted, int64_t level) const;
  int64_t num_rows() const;  // rows of the largest step
  int64_t max_masks() const;
  int64_t max_depth() const;
  bool is_ar() const;
  bool uses_text() const;  // whether a step depends on earlier parts of the text
  std::vector<std::string> misfits(int64_t num_masks, int64_t num_ranks, int64_t num_slots) const;
};

// Read the tree or the table in a file. Throws a Fault that names it and ends with `fix`.
TreeTable read_trees(const std::filesystem::path& path, const std::string& fix);

// Parse the content of such a file.
TreeTable parse_trees(std::string_view text);

}  // namespace bita
