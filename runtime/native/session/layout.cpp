#include "layout.h"

#include <algorithm>
#include <numeric>

namespace bita {

namespace {

// Builds the rows of `sees`, one for each row of the layout.
class Sights {
 public:
  explicit Sights(int64_t num_rows)
      : num_rows_(num_rows), cells_(static_cast<size_t>(num_rows * num_rows)) {}

  void set(int64_t row, int64_t seen) { cells_[static_cast<size_t>(row * num_rows_ + seen)] = 1; }
  void copy(int64_t from, int64_t to) {
    const auto first = cells_.begin() + from * num_rows_;
    std::copy(first, first + num_rows_, cells_.begin() + to * num_rows_);
  }
  std::vector<uint8_t> take() { return std::move(cells_); }

 private:
  int64_t num_rows_;
  std::vector<uint8_t> cells_;
};

// Append text rows until a layout has `num_rows`; no other row sees them, and they do not disturb
// the order of what follows.
void pad(Layout& layout, Sights& sights, int64_t num_rows) {
  for (int64_t row = layout.num_rows(); row < num_rows; ++row) {
    layout.offsets.push_back(layout.offsets.back() + 1);
    layout.mask_index.push_back(-1);
    sights.set(row, row);
  }
}

}  // namespace

int64_t Layout::first_mask_row() const {
  const auto first =
      std::find_if(mask_index.begin(), mask_index.end(), [](int64_t index) { return index >= 0; });
  return first - mask_index.begin();
}

std::vector<uint8_t> Layout::sees_prefix() const {
  std::vector<uint8_t> found(mask_index.size());
  std::transform(mask_index.begin(), mask_index.end(), found.begin(),
                 [](int64_t index) { return index >= 0; });
  return found;
}

Layout tree_layout(const Tree& tree, int64_t min_rows) {
  const int64_t num_rows = std::max(tree.num_rows(), min_rows);
  Layout layout;
  Sights sights(num_rows);
  layout.offsets = tree.depths();
  layout.mask_index.assign(layout.offsets.size(), -1);
  for (int64_t node = 0; node < tree.num_nodes(); ++node) {
    const int64_t parent = tree.parents()[static_cast<size_t>(node)];
    if (parent >= 0) sights.copy(parent, node);
    sights.set(node, node);
  }
  for (int64_t node = 0; node < tree.num_nodes(); ++node) {
    const int64_t first = layout.num_rows();
    for (int64_t mask = 0; mask < tree.num_masks()[static_cast<size_t>(node)]; ++mask) {
      const int64_t row = layout.num_rows();
      sights.copy(node, row);
      for (int64_t seen = first; seen <= row; ++seen) sights.set(row, seen);
      layout.offsets.push_back(tree.depths()[static_cast<size_t>(node)] + 1 + mask);
      layout.mask_index.push_back(mask);
    }
  }
  pad(layout, sights, num_rows);
  layout.sees = sights.take();
  layout.output_rows.resize(static_cast<size_t>(num_rows));
  std::iota(layout.output_rows.begin(), layout.output_rows.end(), 0);
  return layout;
}

Layout prefill_layout(int64_t num_tokens, int64_t num_masks, int64_t min_rows) {
  const int64_t num_known = num_tokens + num_masks, num_rows = std::max(num_known, min_rows);
  Layout layout;
  Sights sights(num_rows);
  for (int64_t row = 0; row < num_known; ++row) {
    layout.offsets.push_back(row);
    layout.mask_index.push_back(row < num_tokens ? -1 : row - num_tokens);
    for (int64_t seen = 0; seen <= row; ++seen) sights.set(row, seen);
  }
  pad(layout, sights, num_rows);
  layout.sees = sights.take();
  const int64_t num_outputs = num_masks + 1;
  for (int64_t i = 0; i < std::max(num_outputs, min_rows); ++i) {
    layout.output_rows.push_back(num_tokens - 1 + i % num_outputs);
  }
  return layout;
}

}  // namespace bita
