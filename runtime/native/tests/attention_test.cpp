// Attention as a complete operator.
#include <algorithm>
#include <cmath>

#include "step.h"

namespace bita::tests {
namespace {

struct Scene {
  const char* name;
  Shape shape;
  Amount amount;
};

Shape shape_of(int64_t num_heads, int64_t num_kv_heads, int64_t head_dim, int64_t half,
               bool is_half, bool has_norms, float softcap = 0, int64_t window = 0) {
  return {num_heads, num_kv_heads, head_dim, half, is_half, has_norms, 0.4f, softcap, window};
}

const std::vector<Scene>& scenes() {
  static const std::vector<Scene> all = {
      {"one head, an empty text", shape_of(1, 1, 16, 8, false, false), {{0}, {1}}},
      {"one row", shape_of(2, 2, 32, 16, true, false), {{37}, {1}}},
      {"branches", shape_of(4, 2, 32, 8, true, true), {{63}, {9}}},
      {"groups of three", shape_of(6, 2, 48, 5, false, true), {{64}, {17}}},
      {"a group of sixteen", shape_of(16, 1, 16, 0, true, false), {{100}, {5}}},
      {"a group of sixteen and texts", shape_of(16, 1, 32, 4, false, true), {{3, 70}, {2, 3}}},
      {"texts that share pages",
       shape_of(3, 1, 32, 16, true, false),
       {{40, 33, 50}, {5, 1, 7}, 0, 2}},
      {"a text without rows", shape_of(2, 1, 16, 8, false, false), {{20, 0, 5}, {3, 0, 4}}},
      {"a prefix", shape_of(4, 1, 32, 8, true, true), {{30}, {8}, 70}},
      {"a prefix and empty texts", shape_of(2, 2, 16, 8, false, false), {{0, 0}, {4, 3}, 5}},
      {"a prefix, shared pages", shape_of(2, 1, 80, 40, true, false), {{64, 32}, {6, 6}, 16, 2}},
      {"soft caps", shape_of(4, 2, 32, 8, false, true, 3.0f), {{90}, {10}}},
      {"a window", shape_of(4, 2, 32, 8, true, false, 0, 40), {{130}, {10}}},
      {"a window, a cap, a prefix",
       shape_of(3, 1, 32, 8, false, true, 5.0f, 70),
       {{150, 20}, {7, 9}, 20}},
      {"a window smaller than the tails",
       shape_of(2, 1, 16, 8, true, false, 0, 3),
       {{70, 2}, {30, 12}, 0, 0, true}},
      {"a window of one", shape_of(2, 1, 16, 8, false, false, 0, 1), {{17}, {6}}},
      {"a full cache", shape_of(2, 1, 32, 8, true, false), {{100, 60}, {3, 9}, 17, 0, false, true}},
      {"a long prompt", shape_of(3, 1, 16, 8, true, true), {{0}, {130}, 0, 0, true}},
      {"two prompts", shape_of(2, 2, 16, 4, false, false, 0, 50), {{20, 0}, {100, 30}, 9, 1, true}},
  };
  return all;
}

// The step wrote its keys and values, and left everything else unchanged.
void expect_written(const Step& step, const Value& present, const std::string& what) {
  Value before = step.past;
  const auto cell_bytes = static_cast<int64_t>(type_size(before.type));
  for (const Row& row : step.rows) {
    const std::vector<int64_t>& pages = step.texts[static_cast<size_t>(row.text)].pages;
    for (int64_t head = 0; head < step.shape.num_kv_heads; ++head)
      for (const bool is_key : {true, false}) {
        const auto found = step.cells(present, pages, row.slot, head, is_key);
        const auto wanted = is_key ? step.exact_key(row, head) : step.exact_value(row, head);
        for (size_t d = 0; d < wanted.size(); ++d) {
          const double slack = step.shape.is_half ? std::abs(wanted[d]) / 2040 + 1e-6 : 4e-6;
          expect(std::abs(found[d] - wanted[d]) <= slack, what + ": a cell has the wrong value");
          const int64_t cell = step.cell(pages[static_cast<size_t>(row.slot / kPage)], row.slot,
                                         head, static_cast<int64_t>(d), is_key);
          std::copy_n(present.bytes.begin() + cell * cell_bytes, cell_bytes,
                      before.bytes.begin() + cell * cell_bytes);
        }
      }
  }
  expect_same(before.bytes, present.bytes, what + ", the cache");
}

void expect_exact(const Step& step, const std::vector<Value>& found, const std::string& what) {
  std::vector<double> wanted;
  for (size_t row = 0; row < step.rows.size(); ++row)
    for (const double x : step.exact(found[1], row)) wanted.push_back(x);
  expect_quantized(found[0], wanted, step.shape.num_heads * step.shape.head_dim, 2e-5, what);
}

const Adds attention("Attention gives the softmax over pages, with the same bits everywhere", [] {
  Random random(40);
  for (const Scene& scene : scenes()) {
    const Step step = random_step(random, scene.shape, scene.amount);
    const std::vector<Value> found = run_everywhere(step.node(), scene.name);
    expect_written(step, found[1], scene.name);
    expect_exact(step, found, scene.name);
  }
});

const Adds orders("Attention of rows in any order, and of each alone, has the same bits", [] {
  Random random(41);
  for (const Scene& scene : scenes()) {
    const Step step = random_step(random, scene.shape, scene.amount);
    Node node = step.node();
    const std::vector<Value> found = run(node);
    std::vector<int64_t> order;
    Node other = step.reordered(random, order).node();
    expect_same_values(run(other, {3, 1}), {rows_of(found[0], order), found[1]},
                       std::string(scene.name) + ", reordered");
    for (size_t i = 0; i < std::min<size_t>(step.rows.size(), 8); ++i) {
      const auto row = static_cast<size_t>(random.below(static_cast<int64_t>(step.rows.size())));
      Node one = step.alone(found[1], row).node();
      expect_same_values({run(one, {2, 3})[0]}, {rows_of(found[0], {static_cast<int64_t>(row)})},
                         std::string(scene.name) + ", alone");
    }
  }
});

const Adds other_memory("A cache that is not bound is copied first", [] {
  Random random(42);
  const Step step = random_step(random, shape_of(2, 1, 16, 8, true, false), {{20}, {4}});
  Node bound = step.node(), apart = step.node();
  apart.binds.clear();
  expect_same_values(run(apart, {2, 1}), run(bound), "other memory");
  expect_same(apart["past"].bytes, step.past.bytes, "the past is not written to");
});

const Adds sees_nothing("A row whose window ends before its keys gets zeros", [] {
  Random random(43);
  Step step = random_step(random, shape_of(2, 1, 16, 8, false, false, 0, 4), {{20}, {3}});
  step.rows[1].position = 400;  // its keys end at position 22
  const std::vector<Value> found = run_everywhere(step.node(), "a row that sees nothing");
  for (const double x : meaning(rows_of(found[0], {1}), 32)) expect(x == 0.0, "zeros");
  std::vector<Value> all = {found[0], found[1]};
  expect_exact(step, all, "rows next to one that sees nothing");
});

const Adds prefix_alone("A row may see only the prefix, not even itself", [] {
  Random random(46);
  for (const int64_t num_heads : {2, 16}) {
    const Shape shape = shape_of(num_heads, num_heads, 16, 8, true, false);
    Step step = random_step(random, shape, {{0}, {2}, 70, 0, true});
    for (Row& row : step.rows) {
      row.seen.clear();
      row.sees_prefix = true;
    }
    expect_exact(step, run_everywhere(step.node(), "the prefix"), "the prefix alone");
  }
});

const Adds nan_rows("A row of NaN spoils only rows that see it", [] {
  Random random(44);
  Step step = random_step(random, shape_of(2, 1, 32, 8, true, true), {{20}, {12}});
  step.rows[0].seen = {0};
  step.rows[0].position = 20;
  for (float& x : step.rows[5].qkv) x = std::nanf("");
  const std::vector<Value> found = run_everywhere(step.node(), "a row of NaN");
  for (int64_t row = 0; row < 12; ++row) {
    const std::vector<int64_t>& seen = step.rows[static_cast<size_t>(row)].seen;
    const bool is_spoiled = std::find(seen.begin(), seen.end(), 5) != seen.end();
    for (const double x : meaning(rows_of(found[0], {row}), 64))
      expect(std::isnan(x) == is_spoiled, "row " + std::to_string(row) + " next to one of NaN");
  }
});

const Adds no_rows("Attention of no rows leaves the cache unchanged", [] {
  Random random(45);
  const Step step = random_step(random, shape_of(2, 1, 16, 8, true, false), {{20}, {0}});
  for (const bool is_bound : {true, false}) {
    Node node = step.node();
    if (!is_bound) node.binds.clear();
    const std::vector<Value> found = run(node, {2, 0});
    expect(found[0].dims == std::vector<int64_t>{0, 44}, "no rows");
    expect_same(found[1].bytes, step.past.bytes, "the cache");
  }
  Node sights = step.sights_node(), nothing = step.node();
  sights["text_lengths"] = ints({0}, {});
  sights["text_pages"] = ints({0, INT64_MAX}, {});
  nothing["sights"] = run(sights)[0];
  nothing["past"] = floats({0, 1, 2, 256}, {});
  expect(run(nothing)[1].dims[0] == 0, "no pages");
});

}  // namespace
}  // namespace bita::tests
