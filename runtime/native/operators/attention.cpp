#include "attention.h"

#include <algorithm>
#include <cstring>

#include "../kernels/roads.h"
#include "scratch.h"
#include "sights.h"

namespace bita {
namespace {

constexpr int64_t kMaxHeadDim = 1024;
constexpr int64_t kManyItems = 16;  // of work, which keep all threads busy

int64_t chunk_count(int64_t slots) { return (slots + kChunk - 1) / kChunk; }
int64_t page_count(int64_t slots) { return (slots + kPage - 1) / kPage; }

struct Shape {
  int64_t num_heads, num_kv_heads, head_dim;
  int64_t group() const { return num_heads / num_kv_heads; }  // heads that share keys
  int64_t width() const { return (num_heads + 2 * num_kv_heads) * head_dim; }
  int64_t values() const { return num_heads * head_dim; }
};

// The memory of all pages of a layer.
struct Pages {
  uint8_t* data;
  int64_t num_kv_heads, head_dim;
  bool is_half;

  int64_t head_bytes() const { return 2 * kPage * head_dim * (is_half ? 2 : 4); }
  uint8_t* at(int64_t page, int64_t kv_head) const {
    return data + (page * num_kv_heads + kv_head) * head_bytes();
  }
};

// One key-value head of a block of rows, in chunks of positions of the prefix or of the text.
struct Item {
  int64_t block;
  int64_t kv_head;
  int64_t chunk;       // the first; those before `prefix_chunks` are of the prefix
  int64_t num_chunks;  // which are merged
  int64_t result;      // where the results of its queries start
};

// Chunks and results of a block of rows.
struct BlockWork {
  int64_t prefix_chunks;
  int64_t skipped;      // chunks of the text before the window
  int64_t num_chunks;   // of both
  int64_t num_results;  // of a query: chunks that are left to merge
  int64_t result;       // of its first kv head: [kv head][result][query]
};

struct Memory {
  Scratch<float> queries, maxima, sums, values;
  Scratch<const void*> text_pages, prefix_pages;
  Scratch<Item> items;
  Scratch<BlockWork> works;
  Scratch<int64_t> block_of_row;
};

// Attention of one step: turned queries, items of work, results of their queries.
class StepAttention {
 public:
  StepAttention(const Shape& shape, const StepPlace& place, const Pages& pages, int64_t window,
                float softcap)
      : shape_(shape),
        place_(place),
        pages_(pages),
        softcap_(softcap),
        sights_(find_sights(place, window, std::max<int64_t>(1, kMaxQueries / shape.group()))),
        memory_(memory_of_thread()),
        queries_(memory_.queries.take(place.num_rows * shape.values())) {
    note_blocks();
    list_pages();
    list_items();
  }

  // Where the turned query of a row and head goes: [block][kv head][row, head of the group].
  float* query(int64_t row, int64_t head) const {
    const RowBlock& block = block_of(row);
    const int64_t group = shape_.group(), in_block = row - block.first_row;
    return queries_ + (block.first_row * shape_.num_heads +
                       (head / group * block.num_rows + in_block) * group + head % group) *
                          shape_.head_dim;
  }

  // Compute all items, then each row's merged values, quantized.
  void run(const NodeRun& node, uint8_t* out) const {
    node.parallel_work(num_items_, work_, [&](int64_t i) { attend(items_[i]); });
    node.parallel_work(place_.num_rows, place_.num_rows * shape_.values() * 8,
                       [&](int64_t row) { finish(row, out); });
  }

 private:
  static Memory& memory_of_thread() {
    thread_local Memory memory;
    return memory;
  }

  int64_t num_queries(const RowBlock& block) const { return block.num_rows * shape_.group(); }
  const RowBlock& block_of(int64_t row) const { return sights_.blocks[block_of_row_[row]]; }

  void note_blocks() {
    block_of_row_ = memory_.block_of_row.take(place_.num_rows);
    for (int64_t index = 0; index < sights_.num_blocks; ++index) {
      const RowBlock& block = sights_.blocks[index];
      std::fill_n(block_of_row_ + block.first_row, block.num_rows, index);
    }
  }

  // The memory of the pages of each text and kv head, and of the prefix.
  void list_pages() {
    const int64_t heads = shape_.num_kv_heads, wide = place_.pages_per_text;
    text_pages_ = memory_.text_pages.take(place_.num_texts * heads * wide);
    for (int64_t text = 0; text < place_.num_texts; ++text) {
      const int64_t used = page_count(used_slots(text));
      for (int64_t head = 0; head < heads; ++head)
        for (int64_t i = 0; i < used; ++i)
          text_pages_[(text * heads + head) * wide + i] =
              pages_.at(place_.page(text, i * kPage), head);
    }
    const int64_t prefix = page_count(place_.prefix_length);
    prefix_pages_ = memory_.prefix_pages.take(heads * prefix);
    for (int64_t head = 0; head < heads; ++head)
      for (int64_t i = 0; i < prefix; ++i)
        prefix_pages_[head * prefix + i] = pages_.at(place_.prefix_pages.as<int64_t>()[i], head);
  }

  // Slots of a text that this step reads or writes.
  int64_t used_slots(int64_t text) const {
    int64_t slots = place_.length(text);
    for (int64_t row = 0; row < place_.num_rows; ++row)
      if (place_.text(row) == text) slots = std::max(slots, place_.slot(row) + 1);
    return slots;
  }

  BlockWork work_of(const RowBlock& block) const {
    const int64_t prefix = block.sees_prefix ? chunk_count(place_.prefix_length) : 0;
    const int64_t skipped = std::min(block.first, block.stop - 1) / kChunk;
    return {prefix, skipped, prefix + chunk_count(block.stop) - skipped, 0, 0};
  }

  // Where there are heads and blocks of rows enough for many threads, one thread takes all chunks
  // of one; else chunks are items too.
  void list_items() {
    const int64_t heads = shape_.num_kv_heads;
    const bool takes_all = sights_.num_blocks * heads >= kManyItems;
    works_ = memory_.works.take(sights_.num_blocks);
    int64_t num_results = 0;
    num_items_ = work_ = 0;
    for (int64_t index = 0; index < sights_.num_blocks; ++index) {
      const RowBlock& block = sights_.blocks[index];
      BlockWork& work = works_[index];
      work = work_of(block);
      work.num_results = takes_all ? 1 : work.num_chunks;
      work.result = num_results;
      num_items_ += heads * work.num_results;
      work_ += heads * work.num_chunks * num_queries(block) * 4 * kChunk * shape_.head_dim;
      num_results += heads * work.num_results * num_queries(block);
    }
    items_ = memory_.items.take(num_items_);
    Item* item = items_;
    for (int64_t index = 0; index < sights_.num_blocks; ++index) {
      const BlockWork& work = works_[index];
      int64_t result = work.result;
      for (int64_t head = 0; head < heads; ++head)
        for (int64_t i = 0; i < work.num_results; ++i) {
          *item++ = {index, head, i, takes_all ? work.num_chunks : 1, result};
          result += num_queries(sights_.blocks[index]);
        }
    }
    maxima_ = memory_.maxima.take(num_results);
    sums_ = memory_.sums.take(num_results);
    values_ = memory_.values.take(num_results * shape_.head_dim);
  }

  void attend(const Item& item) const {
    // a group of more heads than a task takes is one row's, in several tasks
    const int64_t count = num_queries(sights_.blocks[item.block]);
    for (int64_t start = 0; start < count; start += kMaxQueries) {
      Results results = results_at(item.result + start);
      attend_chunk(item, item.chunk, start, results);
      for (int64_t chunk = 1; chunk < item.num_chunks; ++chunk)
        add_chunk(item, item.chunk + chunk, start, results);
    }
  }

  // Results of queries side by side.
  struct Results {
    float *maxima, *sums, *values;

    Partial at(int64_t query, int64_t size) const {
      return {maxima + query, sums + query, values + query * size};
    }
  };

  Results results_at(int64_t result) const {
    return {maxima_ + result, sums_ + result, values_ + result * shape_.head_dim};
  }

  // Attend to one more chunk, and merge it.
  void add_chunk(const Item& item, int64_t chunk, int64_t start, const Results& totals) const {
    thread_local Scratch<float> scratch;
    float maxima[kMaxQueries], sums[kMaxQueries];
    const int64_t size = shape_.head_dim;
    const Results results{maxima, sums, scratch.take(kMaxQueries * size)};
    const int64_t count = attend_chunk(item, chunk, start, results);
    for (int64_t q = 0; q < count; ++q)
      kernels().merge(results.at(q, size), size, totals.at(q, size));
  }

  // Queries from `start` on, kMaxQueries at most, in one chunk; returns how many they are.
  int64_t attend_chunk(const Item& item, int64_t chunk, int64_t start,
                       const Results& results) const {
    const RowBlock& block = sights_.blocks[item.block];
    const BlockWork& work = works_[item.block];
    const bool is_prefix = chunk < work.prefix_chunks;
    const int64_t group = shape_.group();
    int64_t first[kMaxQueries], stop[kMaxQueries];
    const int32_t* tails[kMaxQueries];
    ChunkTask task{};
    task.num_queries = std::min(kMaxQueries, num_queries(block) - start);
    for (int64_t q = 0; q < task.num_queries; ++q) {
      const Sight& sight = sights_.rows[block.first_row + (start + q) / group];
      first[q] = is_prefix ? 0 : sight.first;
      stop[q] = is_prefix ? place_.prefix_length : sight.stop;
      tails[q] = is_prefix ? nullptr : sight.tail + block.num_common;
    }
    const int64_t in_text = chunk - work.prefix_chunks + work.skipped;
    task.begin = kChunk * (is_prefix ? chunk : in_text);
    task.shared = is_prefix ? place_.prefix_length : place_.length(block.text) + block.num_common;
    task.pages = is_prefix ? prefix_pages_ + item.kv_head * page_count(place_.prefix_length)
                           : text_pages_ + (block.text * shape_.num_kv_heads + item.kv_head) *
                                               place_.pages_per_text;
    task.head_dim = shape_.head_dim;
    task.softcap = softcap_;
    task.is_half = pages_.is_half;
    task.queries = query(block.first_row, item.kv_head * group) + start * shape_.head_dim;
    task.first = first;
    task.stop = stop;
    task.tails = tails;
    task.maxima = results.maxima;
    task.sums = results.sums;
    task.values = results.values;
    kernels().attend(task);
    return task.num_queries;
  }

  // Merge the chunks of a row's heads, and quantize them.
  void finish(int64_t row, uint8_t* out) const {
    thread_local Scratch<float> scratch;
    const RowBlock& block = block_of(row);
    const BlockWork& work = works_[block_of_row_[row]];
    const int64_t stride = num_queries(block), group = shape_.group(), size = shape_.head_dim;
    float* merged = scratch.take(shape_.values());
    for (int64_t head = 0; head < shape_.num_heads; ++head) {
      const int64_t result = work.result + head / group * work.num_results * stride +
                             (row - block.first_row) * group + head % group;
      const Partial total = results_at(result).at(0, size);
      for (int64_t i = 1; i < work.num_results; ++i)
        kernels().merge(results_at(result + i * stride).at(0, size), size, total);
      kernels().divide(total, size, merged + head * size);
    }
    kernels().quantize(merged, shape_.values(), out + row * row_bytes(num_blocks(shape_.values())));
  }

  const Shape& shape_;
  const StepPlace& place_;
  const Pages& pages_;
  const float softcap_;
  const Sights sights_;
  Memory& memory_;
  float* const queries_;
  int64_t* block_of_row_;
  const void **text_pages_, **prefix_pages_;
  BlockWork* works_;
  Item* items_;
  int64_t num_items_, work_;
  float *maxima_, *sums_, *values_;
};

}  // namespace

Attention::Attention(const NodeInfo& info)
    : num_heads_(info.size("num_heads")),
      num_kv_heads_(info.size("kv_num_heads")),
      head_dim_(info.size("head_dim")),
      window_(info.integer("window")),
      scale_(info.real("scale")),
      softcap_(info.real("softcap")),
      epsilon_(info.real("epsilon")),
      cos_(info.constant(11)),
      sin_(info.constant(12)),
      q_norm_(read_vector(info, 13, head_dim_)),
      k_norm_(read_vector(info, 14, head_dim_)) {
  if (num_heads_ % num_kv_heads_) throw std::runtime_error("heads do not share kv heads evenly");
  if (head_dim_ % 16 || head_dim_ > kMaxHeadDim)
    throw std::runtime_error("head_dim is " + std::to_string(head_dim_) +
                             ", not a multiple of 16 up to " + std::to_string(kMaxHeadDim));
  if (window_ < 0) throw std::runtime_error("window is negative");
  if (!cos_ != !sin_) throw std::runtime_error("cos and sin belong together");
  if (!cos_) return;
  check_dims("cos", cos_, {-1, -1});
  check_dims("sin", sin_, cos_.dims);
  if (cos_.dims[1] > head_dim_ / 2) throw std::runtime_error("cos is wider than half a head");
}

void Attention::run(const NodeRun& node) const {
  const Shape shape{num_heads_, num_kv_heads_, head_dim_};
  const Tensor qkv = node.input(0), past = node.input(10);
  check_dims("qkv", qkv, {-1, shape.width()});
  check_dims("past", past, {-1, num_kv_heads_, 2, kPage * head_dim_});
  if (past.type != kHalf && past.type != kFloat)
    throw std::runtime_error("past is neither float16 nor float32");
  const int64_t num_rows = qkv.dims[0], num_pages = past.dims[0];
  const StepPlace place(node, 1, num_rows, num_pages);
  for (int64_t row = 0; cos_ && row < num_rows; ++row)
    if (place.position(row) >= cos_.dims[0])
      throw std::runtime_error("position " + std::to_string(place.position(row)) +
                               " is beyond the " + std::to_string(cos_.dims[0]) + " of the graph");
  const int64_t bytes = row_bytes(num_blocks(num_heads_ * head_dim_));
  uint8_t* out = node.output<uint8_t>(0, {num_rows, bytes});
  Pages pages{static_cast<uint8_t*>(node.output(1, past.dims.data(), past.dims.size())),
              num_kv_heads_, head_dim_, past.type == kHalf};
  if (pages.data != past.data)
    std::memcpy(pages.data, past.data,
                static_cast<size_t>(num_pages * num_kv_heads_ * pages.head_bytes()));
  const StepAttention attention(shape, place, pages, window_, softcap_);
  node.parallel_work(num_rows, num_rows * shape.width() * 4, [&](int64_t row) {
    const float* heads = qkv.as<float>() + row * shape.width();
    for (int64_t head = 0; head < num_heads_; ++head)
      turn(place, row, heads + head * head_dim_, true, attention.query(row, head));
    for (int64_t head = 0; head < num_kv_heads_; ++head)
      write(place, row, heads + (num_heads_ + head) * head_dim_,
            pages.at(place.page(place.text(row), place.slot(row)), head), pages.is_half);
  });
  attention.run(node, out);
}

void Attention::turn(const StepPlace& place, int64_t row, const float* head, bool is_query,
                     float* out) const {
  const int64_t half = cos_ ? cos_.dims[1] : 0, position = place.position(row);
  kernels().turn(head, out, is_query ? q_norm_ : k_norm_, epsilon_,
                 cos_ ? cos_.as<float>() + position * half : nullptr,
                 cos_ ? sin_.as<float>() + position * half : nullptr, half, head_dim_,
                 is_query ? scale_ : 1.0f);
}

void Attention::write(const StepPlace& place, int64_t row, const float* key, uint8_t* page,
                      bool is_half) const {
  float turned[kMaxHeadDim];
  turn(place, row, key, false, turned);
  kernels().write_slot(turned, key + num_kv_heads_ * head_dim_, head_dim_, place.slot(row) % kPage,
                       is_half, page);
}

}  // namespace bita
