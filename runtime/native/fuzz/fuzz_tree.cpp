// Fuzzes tree.json: each file is refused with a message, or gives consistent trees.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "../base/fault.h"
#include "../engine/tree.h"
#include "../session/guard.h"
#include "../session/layout.h"

namespace {

void expect(bool holds) {
  if (!holds) __builtin_trap();
}

void check(const bita::Tree& tree) {
  for (int64_t node = 1; node < tree.num_nodes(); ++node) {
    const int64_t parent = tree.parents()[static_cast<size_t>(node)];
    expect(parent >= 0 && parent < node);
  }
  if (tree.num_rows() > 600) return;  // the cost is quadratic in the rows
  const bita::Layout layout = bita::tree_layout(tree, 1);
  expect(layout.num_rows() == tree.num_rows());
  const auto rows = static_cast<size_t>(layout.num_rows());
  for (size_t row = 0; row < rows; ++row) {
    expect(layout.sees[row * rows + row] == 1);
    expect(layout.sees[row * rows] == 1);  // the root
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const bita::TreeTable table = bita::parse_trees({reinterpret_cast<const char*>(data), size});
    for (const bita::Tree& tree : table.trees) check(tree);
    for (int64_t masks = 0; masks < 5; ++masks)
      for (int64_t level = 0; level <= bita::kMaxLevel; ++level)
        expect(table.number(masks, level) < table.trees.size());
    if (table.costs.empty()) return 0;
    const bita::GuardedTrees guarded(table);
    bita::Guard guard(guarded);
    for (size_t step = 0; step < 20; ++step) {
      const size_t picked = guard.pick(step % table.trees.size(), 5, step % 3 == 0);
      expect(picked < guarded.trees().size());
      guard.count(1, false);
    }
  } catch (const bita::Fault&) {
  }
  return 0;
}
