// A step of several texts in pages, its node, and its attention in double precision.
#pragma once

#include "nodes.h"

namespace bita::tests {

struct Shape {
  int64_t num_heads = 2, num_kv_heads = 1, head_dim = 32;
  int64_t half = 8;  // pairs that the rotary embedding rotates; 0 without
  bool is_half = false, has_norms = false;
  float scale = 0.4f, softcap = 0;
  int64_t window = 0;

  int64_t width() const { return (num_heads + 2 * num_kv_heads) * head_dim; }
};

struct Row {
  int64_t text, slot, position;
  bool sees_prefix;
  std::vector<int64_t> seen;  // rows of the step, ascending; the row itself is last
  std::vector<float> qkv;
};

struct Text {
  int64_t length;
  std::vector<int64_t> pages;
};

// Sizes of a random step.
struct Amount {
  std::vector<int64_t> lengths;  // of the texts
  std::vector<int64_t> rows;     // of each text
  int64_t prefix_length = 0;
  int64_t num_shared_pages = 0;  // shared first pages of all texts
  bool is_chain = false;         // each row sees all rows before it; otherwise rows are branches
  bool fills_cache = false;      // the last row of the last text is in the very last slot
};

// All slots of `past` that no row sees hold NaN.
struct Step {
  Shape shape;
  std::vector<Text> texts;
  std::vector<Row> rows;
  std::vector<int64_t> prefix_pages;
  int64_t prefix_length = 0;
  std::vector<float> cos, sin, q_norm, k_norm;  // tables [512, half]; weights
  Value past;

  // The node of Sights.
  Node sights_node() const;
  // The output of that node on this thread.
  Value sights() const;
  // Give a node of Attention, or of its sublayer, all inputs of the step except `qkv`. `present` is
  // bound to the memory of `past`; the sights are those of this thread.
  void give(Node& node) const;
  // The node of Attention.
  Node node() const;
  // Attention of a row [heads * D] over the cache after the step.
  std::vector<double> exact(const Value& present, size_t row) const;
  // The key of a row and kv head that belongs in the cache, and the value [D].
  std::vector<double> exact_key(const Row& row, int64_t kv_head) const;
  std::vector<double> exact_value(const Row& row, int64_t kv_head) const;
  // The step with its rows in another order, in which a row follows those that it sees.
  Step reordered(Random& random, std::vector<int64_t>& order) const;
  // A row alone, after the rows that it sees were committed to the cache.
  Step alone(const Value& present, size_t row) const;
  // Position of the first key that a row sees through the window.
  int64_t first_key(const Row& row) const;

  // Key or value [D] in a slot of a text's pages, or of the prefix.
  std::vector<double> cells(const Value& cache, const std::vector<int64_t>& pages, int64_t slot,
                            int64_t kv_head, bool is_key) const;
  // Index of a cell of the cache.
  int64_t cell(int64_t page, int64_t slot, int64_t kv_head, int64_t d, bool is_key) const;
  static constexpr int64_t kPositions = 512;
};

Step random_step(Random& random, const Shape& shape, const Amount& amount);

}  // namespace bita::tests
