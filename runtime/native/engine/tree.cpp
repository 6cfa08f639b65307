#include "tree.h"

#include <algorithm>
#include <map>
#include <set>
#include <tuple>

#include "../base/files.h"

namespace bita {

namespace {

constexpr const char* kForm = "{\"nodes\": [{\"path\": [1], \"masks\": 3}, ...]}";
constexpr const char* kTableForm =
    "{\"trees\": [...], \"levels\": [0, ...], \"by_state\": [[number of a tree, ...], ...]}";
constexpr size_t kMaxNodes = 512;   // far more than is useful; guards against broken files
constexpr int64_t kMaxRows = 8192;  // nodes and masks together; likewise
constexpr int64_t kMaxRank = 1 << 20;
constexpr size_t kMaxTrees = 256, kMaxStates = 1024;
constexpr double kMaxCost = 1e6;
constexpr uint64_t kMaxTreeFileBytes = 4u << 20;  // of tree.json, which usually has 1 to 50 kB

using Faults = std::vector<std::string>;

[[noreturn]] void fail(const std::string& message) { throw Fault(FaultKind::kTree, message); }

bool is_on_spine(const Path& path) {
  return std::all_of(path.begin(), path.end(), [](int64_t rank) { return rank == 1; });
}

// Whether the node of path `a` precedes that of `b` in the rows of a step.
bool comes_before(const Path& a, const Path& b) {
  return std::make_tuple(!is_on_spine(a), a.size(), std::cref(a)) <
         std::make_tuple(!is_on_spine(b), b.size(), std::cref(b));
}

std::string listed(const Path& path) { return shown(Json(path)); }

// Throws if a path has no parent.
void check_paths(const std::map<Path, int64_t>& nodes) {
  Faults faults;
  for (const auto& [path, masks] : nodes) {
    if (path.empty()) continue;
    const Path parent(path.begin(), path.end() - 1);
    if (!nodes.count(parent)) {
      faults.push_back("path " + listed(path) + " has no parent " + listed(parent));
    }
  }
  raise_faults(FaultKind::kTree, "tree", faults);
}

void check_count(size_t num_nodes) {
  if (num_nodes > kMaxNodes) {
    fail("tree has " + std::to_string(num_nodes) + " nodes; at most " + std::to_string(kMaxNodes) +
         " are supported");
  }
}

// The list called `name`; empty after a fault.
Json listed_items(const Json& data, const std::string& name, size_t most, Faults& faults) {
  const auto found = data.find(name);
  if (found != data.end() && found->is_array() && found->size() <= most) return *found;
  const std::string what = found == data.end() ? "None"
                           : found->is_array() ? "a list of " + std::to_string(found->size())
                                               : shown(*found);
  faults.push_back(name + " is " + what + ", not a list of at most " + std::to_string(most));
  return Json::array();
}

void add_cost_faults(const TreeTable& table, Faults& faults) {
  constexpr const char* kFix = "; calibrate the tree again, or remove costs";
  const auto& costs = table.costs;
  if (costs.empty() || table.trees.empty()) return;
  const auto num_rows = static_cast<size_t>(table.num_rows());
  if (costs.size() != num_rows) {
    faults.push_back("costs has " + std::to_string(costs.size()) +
                     " numbers, but the largest tree has " + std::to_string(num_rows) + " rows" +
                     kFix);
  }
  if (costs[0] != 1 || !std::is_sorted(costs.begin(), costs.end())) {
    faults.push_back("costs " + shown(Json(costs)) + " do not rise from 1, the cost of one row" +
                     kFix);
  }
}

void check_table(const TreeTable& table) {
  Faults faults;
  const auto& levels = table.levels;
  bool ascend = !levels.empty() && levels.front() == 0 && levels.back() <= kMaxLevel;
  for (size_t i = 1; i < levels.size(); ++i) ascend &= levels[i - 1] < levels[i];
  if (!ascend) {
    faults.push_back("levels " + shown(Json(levels)) + " do not ascend from 0 to at most " +
                     std::to_string(kMaxLevel));
  }
  if (table.by_state.empty()) faults.emplace_back("by_state is empty");
  std::set<int64_t> numbers;
  for (size_t d = 0; d < table.by_state.size(); ++d) {
    const auto& row = table.by_state[d];
    numbers.insert(row.begin(), row.end());
    if (row.size() != levels.size()) {
      faults.push_back("by_state[" + std::to_string(d) + "] has " + std::to_string(row.size()) +
                       " numbers, but levels has " + std::to_string(levels.size()));
    }
  }
  const auto count = static_cast<int64_t>(table.trees.size());
  for (const int64_t number : numbers) {
    if (number >= count) {
      faults.push_back("there is no tree " + std::to_string(number) + "; they are numbered 0 to " +
                       std::to_string(count - 1));
    }
  }
  add_cost_faults(table, faults);
  raise_faults(FaultKind::kTree, "table of trees", faults);
}

}  // namespace

Tree::Tree(std::vector<std::pair<Path, int64_t>> nodes, int64_t min_level) : min_level_(min_level) {
  std::sort(nodes.begin(), nodes.end(),
            [](const auto& a, const auto& b) { return comes_before(a.first, b.first); });
  std::map<Path, int64_t> index;
  int64_t num_rows = 0;
  for (const auto& [path, masks] : nodes) {
    const auto node = static_cast<int64_t>(parents_.size());
    index[path] = node;
    const Path parent(path.begin(), path.empty() ? path.begin() : path.end() - 1);
    parents_.push_back(path.empty() ? -1 : index.at(parent));
    ranks_.push_back(path.empty() ? 0 : path.back());
    num_masks_.push_back(masks);
    depths_.push_back(static_cast<int64_t>(path.size()));
    spine_length_ += is_on_spine(path);
    num_rows += 1 + masks;
  }
  --spine_length_;  // the root
  if (num_rows > kMaxRows) {
    fail("tree has " + std::to_string(num_rows) + " rows; at most " + std::to_string(kMaxRows) +
         " are supported");
  }
}

Tree Tree::root_only(int64_t num_masks) { return Tree({{Path(), num_masks}}, 0); }

Tree Tree::chain(int64_t depth, int64_t num_masks) {
  std::vector<std::pair<Path, int64_t>> nodes;
  for (int64_t d = 0; d <= depth; ++d)
    nodes.emplace_back(Path(static_cast<size_t>(d), 1), num_masks);
  return Tree(std::move(nodes), 0);
}

Tree Tree::from_json(const Json& data) {
  const auto found = data.is_object() ? data.find("nodes") : data.end();
  if (!data.is_object() || found == data.end() || !found->is_array()) {
    fail("not a tree: " + shown(data) + "; expected " + kForm);
  }
  Faults faults;
  Fields fields(data, "", faults);
  const int64_t min_level = fields.whole("min_level", 0, kMaxLevel, 0);
  if (fields.has("min_match")) {
    faults.emplace_back("min_match is of an older bita-edge; calibrate the tree again");
  }
  check_count(found->size());
  std::map<Path, int64_t> nodes;
  size_t number = 0;
  for (const Json& node : *found) {
    const std::string name = "nodes[" + std::to_string(number++) + "]";
    if (!node.is_object()) {
      faults.push_back(name + " is " + shown(node) + ", not an object");
      continue;
    }
    Fields values(node, name + ".", faults);
    const Path path = values.wholes("path", 1, kMaxRank);
    if (path.size() > kMaxNodes) {
      faults.push_back(name + ".path has " + std::to_string(path.size()) + " ranks; at most " +
                       std::to_string(kMaxNodes) + " are supported");
      continue;
    }
    nodes[path] = values.whole("masks", 0, kMaxRows);
  }
  raise_faults(FaultKind::kTree, std::string("not a tree; expected ") + kForm, faults);
  if (nodes.size() != found->size()) {
    fail(std::to_string(found->size() - nodes.size()) + " of " + std::to_string(found->size()) +
         " paths occur twice");
  }
  nodes.emplace(Path(), 0);
  check_count(nodes.size());
  check_paths(nodes);
  return Tree({nodes.begin(), nodes.end()}, min_level);
}

int64_t Tree::num_rows() const {
  int64_t count = num_nodes();
  for (const int64_t masks : num_masks_) count += masks;
  return count;
}

int64_t Tree::max_masks() const { return *std::max_element(num_masks_.begin(), num_masks_.end()); }
int64_t Tree::max_depth() const { return *std::max_element(depths_.begin(), depths_.end()); }
int64_t Tree::max_rank() const { return *std::max_element(ranks_.begin(), ranks_.end()); }

std::vector<std::vector<int64_t>> Tree::children() const {
  std::vector<std::vector<int64_t>> found(parents_.size());
  for (int64_t node = 1; node < num_nodes(); ++node) {
    found[static_cast<size_t>(parents_[static_cast<size_t>(node)])].push_back(node);
  }
  for (auto& nodes : found) {
    std::sort(nodes.begin(), nodes.end(), [&](int64_t a, int64_t b) {
      return ranks_[static_cast<size_t>(a)] < ranks_[static_cast<size_t>(b)];
    });
  }
  return found;
}

Path Tree::path(int64_t node) const {
  Path found;
  for (; node > 0; node = parents_[static_cast<size_t>(node)]) {
    found.push_back(ranks_[static_cast<size_t>(node)]);
  }
  std::reverse(found.begin(), found.end());
  return found;
}

int64_t Tree::first_mask_row(int64_t node) const {
  int64_t row = num_nodes();
  for (int64_t each = 0; each < node; ++each) row += num_masks_[static_cast<size_t>(each)];
  return row;
}

Tree Tree::without_masks() const {
  Tree lean = *this;
  std::fill(lean.num_masks_.begin(), lean.num_masks_.end(), 0);
  return lean;
}

void Tree::add_misfits(int64_t num_masks, int64_t num_ranks, int64_t num_slots,
                       const std::string& prefix, Faults& faults) const {
  const auto add = [&](int64_t found, const std::string& what, int64_t limit) {
    faults.push_back(prefix + std::to_string(found) + what + std::to_string(limit));
  };
  if (max_masks() > num_masks) add(max_masks(), " masks on a node; the adapter has ", num_masks);
  if (max_rank() > num_ranks) {
    faults.push_back(prefix + "rank " + std::to_string(max_rank()) + " is used; the engine gives " +
                     std::to_string(num_ranks));
  }
  if (num_rows() >= num_slots) add(num_rows(), " rows; the cache has room for ", num_slots);
}

bool Tree::operator<(const Tree& other) const {
  return std::tie(parents_, ranks_, num_masks_, min_level_) <
         std::tie(other.parents_, other.ranks_, other.num_masks_, other.min_level_);
}

TreeTable TreeTable::of(Tree tree) { return {{std::move(tree)}, {0}, {{0}}, {}}; }

TreeTable TreeTable::from_json(const Json& data) {
  if (!data.is_object() || !data.contains("trees")) return of(Tree::from_json(data));
  Faults faults;
  Fields fields(data, "", faults);
  if (fields.has("matches")) {
    faults.emplace_back("matches is of an older bita-edge; calibrate the tree again");
  }
  TreeTable table;
  table.levels = fields.wholes("levels", 0, kMaxLevel);
  const Json trees = listed_items(data, "trees", kMaxTrees, faults);
  const Json rows = listed_items(data, "by_state", kMaxStates, faults);
  for (size_t d = 0; d < rows.size(); ++d) {
    const std::string name = "by_state[" + std::to_string(d) + "]";
    const Json row = {{name, rows[d]}};
    table.by_state.push_back(Fields(row, "", faults).wholes(name, 0, kMaxIndex));
  }
  table.costs = fields.numbers("costs", 0, kMaxCost, std::vector<double>());
  raise_faults(FaultKind::kTree, std::string("not a table of trees; expected ") + kTableForm,
               faults);
  for (const Json& tree : trees) table.trees.push_back(Tree::from_json(tree));
  check_table(table);
  return table;
}

size_t TreeTable::number(int64_t num_drafted, int64_t level) const {
  const auto last = static_cast<int64_t>(by_state.size()) - 1;
  const auto& row = by_state[static_cast<size_t>(std::min(num_drafted, last))];
  const auto after = std::upper_bound(levels.begin(), levels.end(), level);
  return static_cast<size_t>(row[static_cast<size_t>(after - levels.begin() - 1)]);
}

int64_t TreeTable::num_rows() const {
  int64_t most = 0;
  for (const Tree& tree : trees) most = std::max(most, tree.num_rows());
  return most;
}

int64_t TreeTable::max_masks() const {
  int64_t most = 0;
  for (const Tree& tree : trees) most = std::max(most, tree.max_masks());
  return most;
}

int64_t TreeTable::max_depth() const {
  int64_t most = 0;
  for (const Tree& tree : trees) most = std::max(most, tree.max_depth());
  return most;
}

bool TreeTable::is_ar() const {
  return std::all_of(trees.begin(), trees.end(), [](const Tree& tree) { return tree.is_ar(); });
}

bool TreeTable::uses_text() const {
  return levels.size() > 1 || std::any_of(trees.begin(), trees.end(),
                                          [](const Tree& tree) { return tree.min_level() > 0; });
}

Faults TreeTable::misfits(int64_t num_masks, int64_t num_ranks, int64_t num_slots) const {
  Faults faults;
  for (size_t n = 0; n < trees.size(); ++n) {
    const std::string prefix = trees.size() == 1 ? "" : "tree " + std::to_string(n) + ": ";
    trees[n].add_misfits(num_masks, num_ranks, num_slots, prefix, faults);
  }
  return faults;
}

TreeTable read_trees(const fs::path& path, const std::string& fix) {
  const Json data = read_json_object(path, FaultKind::kTree, fix, kMaxTreeFileBytes);
  try {
    return TreeTable::from_json(data);
  } catch (const Fault& fault) {
    throw Fault(fault.kind(), text_of(path) + ": " + fault.what() + "; " + fix);
  }
}

TreeTable parse_trees(std::string_view text) {
  try {
    return TreeTable::from_json(parse_json(text));
  } catch (const Fault&) {
    throw;
  } catch (const std::runtime_error& error) {
    fail(std::string("not JSON: ") + error.what());
  }
}

}  // namespace bita
