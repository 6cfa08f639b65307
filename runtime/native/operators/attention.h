#pragma once

#include "phases.h"
#include "sights.h"
#include "weights.h"

namespace bita {

// The heads of queries, keys and values in a row.
struct HeadShape {
  int64_t num_heads, num_kv_heads, head_dim;

  int64_t group() const { return num_heads / num_kv_heads; }  // heads that share keys
  int64_t all_heads() const { return num_heads + 2 * num_kv_heads; }
  int64_t width() const { return all_heads() * head_dim; }
  int64_t values() const { return num_heads * head_dim; }
};

// Attention of a step's rows over pages of keys and values. It also writes the step's own keys and
// values there.
class Attention {
 public:
  static constexpr const char* kName = "Attention";
  static constexpr std::array<Port, 7> kInputs = {{{"qkv", kFloat},
                                                   {"sights", kInt64},
                                                   {"past", kAnyType},
                                                   {"cos", kFloat, true},
                                                   {"sin", kFloat, true},
                                                   {"q_norm", kFloat, true},
                                                   {"k_norm", kFloat, true}}};
  static constexpr std::array<Port, 2> kOutputs = {{{"quantized", kByte}, {"present", kAnyType}}};

  // sights: index of that input of the node; `past` and the inputs after it follow. present: index
  // of that output.
  explicit Attention(const NodeInfo& info, size_t sights = 1, size_t present = 1);
  void run(const NodeRun& node) const;

  const HeadShape& shape() const { return shape_; }

 private:
  friend class AttentionStep;

  HeadShape shape_;
  size_t sights_, present_;
  float scale_, softcap_, epsilon_;
  Tensor cos_, sin_;
  const float *q_norm_, *k_norm_;
};

// The attention of one step of a node: call `take` for each head of each row, then `attend`.
class AttentionStep {
 public:
  // Binds the output `present`, and copies the cache if that output has memory of its own. Raises
  // std::runtime_error for inputs that do not fit the node's rows.
  AttentionStep(const Attention& attention, const NodeRun& node, int64_t num_rows);

  // Take one head of a row [D]; `head` says whether it is a query, a key or a value. Applies norm
  // and rotary embedding, then stores the query, or writes the key or value to the cache. Other
  // heads and rows may be taken at the same time.
  void take(int64_t row, int64_t head, const float* values) const;

  // The two phases that follow once all heads were taken: attention, and its rows [num_rows, heads
  // * D], quantized.
  auto attend() const {
    return Phase{item_pieces(), [this](int64_t piece) { compute_piece(piece); }};
  }
  auto finish(uint8_t* out) const {
    return even_phase(sights_.num_rows(), [=](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) finish_row(row, out);
    });
  }

 private:
  struct Item;
  struct BlockWork;
  struct Memory;
  struct Results;
  struct ChunkPages {
    const void** pages;  // of the prefix or of a text, for one head
    int64_t begin;       // the chunk's first position
    int64_t num_pages;
  };

  static Memory& memory_of_thread();

  int64_t head_bytes() const;
  uint8_t* page_at(int64_t page, int64_t kv_head) const;
  float* query(int64_t row, int64_t head) const;
  const RowBlock& block_of(int64_t row) const;
  int64_t num_queries(const RowBlock& block) const { return block.num_rows * shape_.group(); }
  void bind_cache(const NodeRun& node);
  void list_pages();
  BlockWork work_of(const RowBlock& block) const;
  int64_t num_keys(int64_t block, int64_t chunk) const;
  int64_t chunks_of_item(int64_t block, int64_t chunk) const;
  void list_items();
  int64_t item_pieces() const;
  void compute_piece(int64_t piece) const;
  void compute(const Item& item) const;
  Results results_at(int64_t result) const;
  void add_chunk(const Item& item, int64_t in_item, int64_t start, const Results& totals) const;
  ChunkPages pages_of(const Item& item, int64_t in_item) const;
  int64_t compute_chunk(const Item& item, int64_t in_item, int64_t start,
                        const Results& results) const;
  void finish_row(int64_t row, uint8_t* out) const;

  const Attention& own_;
  const HeadShape& shape_;
  const StepSights& sights_;
  Memory& memory_;
  uint8_t* cache_;
  bool is_half_;
  float* queries_;
  const void **text_pages_, **prefix_pages_;
  BlockWork* works_;
  Item* items_;
  int64_t num_items_;
  bool merges_;  // each item yields one result for each query
  float *maxima_, *sums_, *values_;
};

}  // namespace bita
