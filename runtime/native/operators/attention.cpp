#include "attention.h"

#include <algorithm>
#include <cstring>

#include "../kernels/isa.h"
#include "scratch.h"

namespace bita {
namespace {

constexpr int64_t kMaxHeadDim = 1024;
constexpr int64_t kManyItems = 16;  // enough to keep all threads busy

int64_t chunk_count(int64_t slots) { return (slots + kChunk - 1) / kChunk; }

}  // namespace

// One key-value head of a block of rows, for several chunks of the prefix or of the text.
struct AttentionStep::Item {
  int64_t block;
  int64_t kv_head;
  int64_t chunk;  // the first one; chunks below `prefix_chunks` belong to the prefix
  int64_t num_chunks;
  int64_t result;  // index of its queries' first result: one for each chunk, or one if merged
};

// Chunks and results of a block of rows.
struct AttentionStep::BlockWork {
  int64_t prefix_chunks;
  int64_t skipped;      // chunks of the text before the window
  int64_t num_chunks;   // of the prefix and the text
  int64_t num_results;  // for each query: partial results that are merged at the end
  int64_t result;       // index of its first one: [kv head][result][query]
};

struct AttentionStep::Memory {
  Scratch<float> queries, maxima, sums, values;
  Scratch<const void*> text_pages, prefix_pages;
  Scratch<Item> items;
  Scratch<BlockWork> works;
};

// Results of several queries, stored one after the other.
struct AttentionStep::Results {
  float *maxima, *sums, *values;

  Partial at(int64_t query, int64_t size) const {
    return {maxima + query, sums + query, values + query * size};
  }
};

Attention::Attention(const NodeInfo& info, size_t sights, size_t present)
    : shape_{info.size("num_heads"), info.size("kv_num_heads"), info.size("head_dim")},
      sights_(sights),
      present_(present),
      scale_(info.real("scale")),
      softcap_(info.real("softcap")),
      epsilon_(info.real("epsilon")),
      cos_(info.constant(sights + 2)),
      sin_(info.constant(sights + 3)),
      q_norm_(read_vector(info, sights + 4, shape_.head_dim)),
      k_norm_(read_vector(info, sights + 5, shape_.head_dim)) {
  if (shape_.num_heads % shape_.num_kv_heads)
    throw std::runtime_error("num_heads is not a multiple of kv_num_heads");
  if (shape_.head_dim % 16 || shape_.head_dim > kMaxHeadDim)
    throw std::runtime_error("head_dim is " + std::to_string(shape_.head_dim) +
                             ", not a multiple of 16 up to " + std::to_string(kMaxHeadDim));
  if (!cos_ != !sin_) throw std::runtime_error("cos and sin must be given together");
  if (!cos_) return;
  check_dims("cos", cos_, {-1, -1});
  check_dims("sin", sin_, cos_.dims);
  if (cos_.dims[1] > shape_.head_dim / 2) throw std::runtime_error("cos is wider than half a head");
}

void Attention::run(const NodeRun& node) const {
  const Tensor qkv = node.input(0);
  check_dims("qkv", qkv, {-1, shape_.width()});
  const int64_t num_rows = qkv.dims[0], all = shape_.all_heads();
  uint8_t* out = node.output<uint8_t>(0, {num_rows, row_bytes(num_blocks(shape_.values()))});
  const AttentionStep step(*this, node, num_rows);
  const Phase take{num_rows, [&](int64_t row) {
                     for (int64_t head = 0; head < all; ++head)
                       step.take(row, head, qkv.as<float>() + (row * all + head) * shape_.head_dim);
                   }};
  run_phases(node, take, step.attend(), step.finish(out));
}

AttentionStep::Memory& AttentionStep::memory_of_thread() {
  thread_local Memory memory;
  return memory;
}

AttentionStep::AttentionStep(const Attention& attention, const NodeRun& node, int64_t num_rows)
    : own_(attention),
      shape_(attention.shape_),
      sights_(sights_of(node.input(attention.sights_))),
      memory_(memory_of_thread()),
      queries_(memory_.queries.take(num_rows * shape_.values())) {
  if (sights_.num_rows() != num_rows)
    throw std::runtime_error("sights are for " + std::to_string(sights_.num_rows()) +
                             " rows, but the input has " + std::to_string(num_rows));
  if (sights_.group != shape_.group())
    throw std::runtime_error("sights are for groups of " + std::to_string(sights_.group) +
                             " heads, not of " + std::to_string(shape_.group()));
  if (own_.cos_ && num_rows && sights_.largest_position >= own_.cos_.dims[0])
    throw std::runtime_error("position " + std::to_string(sights_.largest_position) +
                             " is not one of the " + std::to_string(own_.cos_.dims[0]) +
                             " positions of the graph");
  bind_cache(node);
  list_pages();
  list_items();
}

void AttentionStep::bind_cache(const NodeRun& node) {
  const Tensor past = node.input(own_.sights_ + 1);
  check_dims("past", past, {-1, shape_.num_kv_heads, 2, kPage * shape_.head_dim});
  if (past.type != kHalf && past.type != kFloat)
    throw std::runtime_error("past is neither float16 nor float32");
  is_half_ = past.type == kHalf;
  const int64_t num_pages = past.dims[0];
  const bool has_pages = !sights_.pages.empty() || !sights_.prefix_pages.empty();
  if (has_pages && sights_.largest_page >= num_pages)
    throw std::runtime_error("page " + std::to_string(sights_.largest_page) +
                             " is not one of the cache's " + std::to_string(num_pages) + " pages");
  cache_ = static_cast<uint8_t*>(node.output(own_.present_, past.dims.data(), past.dims.size()));
  if (cache_ != past.data)
    std::memcpy(cache_, past.data,
                static_cast<size_t>(num_pages * shape_.num_kv_heads * head_bytes()));
}

int64_t AttentionStep::head_bytes() const {
  return 2 * kPage * shape_.head_dim * (is_half_ ? 2 : 4);
}

uint8_t* AttentionStep::page_at(int64_t page, int64_t kv_head) const {
  return cache_ + (page * shape_.num_kv_heads + kv_head) * head_bytes();
}

const RowBlock& AttentionStep::block_of(int64_t row) const {
  const int64_t block = sights_.block_of_row[static_cast<size_t>(row)];
  return sights_.blocks[static_cast<size_t>(block)];
}

// Where the rotated query of a row and head is stored: [block][kv head][row, head of the group].
float* AttentionStep::query(int64_t row, int64_t head) const {
  const RowBlock& block = block_of(row);
  const int64_t group = shape_.group(), in_block = row - block.first_row;
  return queries_ + (block.first_row * shape_.num_heads +
                     (head / group * block.num_rows + in_block) * group + head % group) *
                        shape_.head_dim;
}

void AttentionStep::take(int64_t row, int64_t head, const float* values) const {
  const RowPlace& place = sights_.places[static_cast<size_t>(row)];
  const Kernels& kernel = kernels();
  const int64_t size = shape_.head_dim, half = own_.cos_ ? own_.cos_.dims[1] : 0;
  const float* cos = half ? own_.cos_.as<float>() + place.position * half : nullptr;
  const float* sin = half ? own_.sin_.as<float>() + place.position * half : nullptr;
  if (head < shape_.num_heads) {
    kernel.turn(values, query(row, head), own_.q_norm_, own_.epsilon_, cos, sin, half, size,
                own_.scale_);
    return;
  }
  const int64_t kv_head = (head - shape_.num_heads) % shape_.num_kv_heads;
  uint8_t* page = page_at(place.page, kv_head);
  const int64_t slot = place.slot % kPage;
  if (head >= shape_.num_heads + shape_.num_kv_heads)
    return kernel.write_value(values, size, slot, is_half_, page);
  float turned[kMaxHeadDim];
  kernel.turn(values, turned, own_.k_norm_, own_.epsilon_, cos, sin, half, size, 1.0f);
  kernel.write_key(turned, size, slot, is_half_, page);
}

// Collect the addresses of the pages of each text and of the prefix, for each kv head.
void AttentionStep::list_pages() {
  const int64_t heads = shape_.num_kv_heads;
  const auto list = [&](const int64_t* pages, int64_t count, const void** out) {
    for (int64_t head = 0; head < heads; ++head)
      for (int64_t i = 0; i < count; ++i) *out++ = page_at(pages[i], head);
  };
  const auto num_pages = static_cast<int64_t>(sights_.pages.size());
  const auto num_prefix = static_cast<int64_t>(sights_.prefix_pages.size());
  text_pages_ = memory_.text_pages.take(heads * num_pages);
  prefix_pages_ = memory_.prefix_pages.take(heads * num_prefix);
  for (const TextPages& text : sights_.texts)
    list(sights_.pages.data() + text.first_page, text.num_pages,
         text_pages_ + heads * text.first_page);
  list(sights_.prefix_pages.data(), num_prefix, prefix_pages_);
}

AttentionStep::BlockWork AttentionStep::work_of(const RowBlock& block) const {
  const int64_t prefix = block.sees_prefix ? chunk_count(sights_.prefix_length) : 0;
  const int64_t skipped = std::min(block.first, block.stop - 1) / kChunk;
  return {prefix, skipped, prefix + chunk_count(block.stop) - skipped, 0, 0};
}

// The maximum number of keys in a chunk of a block.
int64_t AttentionStep::num_keys(int64_t block, int64_t chunk) const {
  const BlockWork& work = works_[block];
  const bool is_prefix = chunk < work.prefix_chunks;
  const int64_t stop =
      is_prefix ? sights_.prefix_length : sights_.blocks[static_cast<size_t>(block)].stop;
  const int64_t in_part = is_prefix ? chunk : chunk - work.prefix_chunks + work.skipped;
  return std::min(kChunk, stop - in_part * kChunk);
}

// The number of chunks, starting at `chunk`, that make an item of about a full chunk's keys.
int64_t AttentionStep::chunks_of_item(int64_t block, int64_t chunk) const {
  int64_t count = 1, keys = num_keys(block, chunk);
  for (; chunk + count < works_[block].num_chunks; ++count) {
    keys += num_keys(block, chunk + count);
    if (keys > kChunk + kChunk / 2) break;
  }
  return count;
}

// If there are enough heads and blocks of rows to keep all threads busy, one thread takes all
// chunks of one and merges them; otherwise the chunks are cut into items of about equal work.
void AttentionStep::list_items() {
  const int64_t heads = shape_.num_kv_heads;
  const auto num_blocks = static_cast<int64_t>(sights_.blocks.size());
  merges_ = num_blocks * heads >= kManyItems;
  works_ = memory_.works.take(num_blocks);
  int64_t num_results = 0, max_items = 0;
  for (int64_t index = 0; index < num_blocks; ++index) {
    const RowBlock& block = sights_.blocks[static_cast<size_t>(index)];
    BlockWork& work = works_[index];
    work = work_of(block);
    work.num_results = merges_ ? 1 : work.num_chunks;
    work.result = num_results;
    max_items += heads * work.num_results;
    num_results += heads * work.num_results * num_queries(block);
  }
  items_ = memory_.items.take(max_items);
  num_items_ = 0;
  for (int64_t index = 0; index < num_blocks; ++index) {
    const int64_t num_chunks = works_[index].num_chunks;
    const int64_t count = num_queries(sights_.blocks[static_cast<size_t>(index)]);
    int64_t result = works_[index].result;
    for (int64_t head = 0; head < heads; ++head)
      for (int64_t chunk = 0; chunk < num_chunks;) {
        const int64_t taken = merges_ ? num_chunks : chunks_of_item(index, chunk);
        items_[num_items_++] = {index, head, chunk, taken, result};
        result += count * (merges_ ? 1 : taken);
        chunk += taken;
      }
  }
  maxima_ = memory_.maxima.take(num_results);
  sums_ = memory_.sums.take(num_results);
  values_ = memory_.values.take(num_results * shape_.head_dim);
}

int64_t AttentionStep::item_pieces() const { return merges_ ? num_items_ : shares_of(num_items_); }

void AttentionStep::compute_piece(int64_t piece) const {
  const int64_t pieces = item_pieces();
  for (int64_t i = num_items_ * piece / pieces; i < num_items_ * (piece + 1) / pieces; ++i)
    compute(items_[i]);
}

void AttentionStep::compute(const Item& item) const {
  // a group with more heads than a task takes has a single row, and needs several tasks
  const int64_t count = num_queries(sights_.blocks[static_cast<size_t>(item.block)]);
  for (int64_t start = 0; start < count; start += kMaxQueries) {
    const Results results = results_at(item.result + start);
    compute_chunk(item, 0, start, results);
    for (int64_t i = 1; i < item.num_chunks; ++i)
      if (merges_)
        add_chunk(item, i, start, results);
      else
        compute_chunk(item, i, start, results_at(item.result + i * count + start));
  }
}

// The list of pages that contains those of an item's chunk. in_item: index of the chunk in the
// item.
AttentionStep::ChunkPages AttentionStep::pages_of(const Item& item, int64_t in_item) const {
  const RowBlock& block = sights_.blocks[static_cast<size_t>(item.block)];
  const BlockWork& work = works_[item.block];
  const int64_t chunk = item.chunk + in_item;
  if (chunk < work.prefix_chunks) {
    const auto count = static_cast<int64_t>(sights_.prefix_pages.size());
    return {prefix_pages_ + item.kv_head * count, kChunk * chunk, count};
  }
  const TextPages& text = sights_.texts[static_cast<size_t>(block.text)];
  return {text_pages_ + shape_.num_kv_heads * text.first_page + item.kv_head * text.num_pages,
          kChunk * (chunk - work.prefix_chunks + work.skipped), text.num_pages};
}

AttentionStep::Results AttentionStep::results_at(int64_t result) const {
  return {maxima_ + result, sums_ + result, values_ + result * shape_.head_dim};
}

// Attend to one more chunk and merge it into `totals`.
void AttentionStep::add_chunk(const Item& item, int64_t in_item, int64_t start,
                              const Results& totals) const {
  thread_local Scratch<float> scratch;
  float maxima[kMaxQueries], sums[kMaxQueries];
  const int64_t size = shape_.head_dim;
  const Results results{maxima, sums, scratch.take(kMaxQueries * size)};
  const int64_t count = compute_chunk(item, in_item, start, results);
  for (int64_t q = 0; q < count; ++q)
    kernels().merge(results.at(q, size), size, totals.at(q, size));
}

// Compute one chunk for up to kMaxQueries queries, starting at `start`; returns their number.
int64_t AttentionStep::compute_chunk(const Item& item, int64_t in_item, int64_t start,
                                     const Results& results) const {
  const RowBlock& block = sights_.blocks[static_cast<size_t>(item.block)];
  const TextPages& text = sights_.texts[static_cast<size_t>(block.text)];
  const bool is_prefix = item.chunk + in_item < works_[item.block].prefix_chunks;
  const int64_t group = shape_.group();
  int64_t first[kMaxQueries], stop[kMaxQueries];
  const int32_t* tails[kMaxQueries];
  ChunkTask task{};
  task.num_queries = std::min(kMaxQueries, num_queries(block) - start);
  for (int64_t q = 0; q < task.num_queries; ++q) {
    const Sight& sight = sights_.rows[static_cast<size_t>(block.first_row + (start + q) / group)];
    first[q] = is_prefix ? 0 : sight.first;
    stop[q] = is_prefix ? sights_.prefix_length : sight.stop;
    tails[q] = is_prefix ? nullptr : sights_.tails.data() + sight.tail + block.num_common;
  }
  const ChunkPages own = pages_of(item, in_item);
  task.begin = own.begin;
  task.shared = is_prefix ? sights_.prefix_length : text.length + block.num_common;
  task.pages = own.pages;
  const bool is_last = in_item + 1 == item.num_chunks;
  if (!is_last || &item + 1 < items_ + num_items_) {
    const ChunkPages next = is_last ? pages_of(*(&item + 1), 0) : pages_of(item, in_item + 1);
    task.next = next.pages + next.begin / kPage;
    task.num_next = std::min(kChunk, next.num_pages * kPage - next.begin) / kPage;
  }
  task.head_dim = shape_.head_dim;
  task.softcap = own_.softcap_;
  task.is_half = is_half_;
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

// Merge the chunks of a row's heads and quantize the result.
void AttentionStep::finish_row(int64_t row, uint8_t* out) const {
  thread_local Scratch<float> scratch;
  const RowBlock& block = block_of(row);
  const BlockWork& work = works_[sights_.block_of_row[static_cast<size_t>(row)]];
  const int64_t stride = num_queries(block), group = shape_.group(), size = shape_.head_dim;
  float* merged = scratch.take(shape_.values());
  for (int64_t head = 0; head < shape_.num_heads; ++head) {
    const int64_t result = work.result + head / group * work.num_results * stride +
                           (row - block.first_row) * group + head % group;
    kernels().mean(results_at(result).at(0, size), stride, work.num_results, size,
                   merged + head * size);
  }
  kernels().quantize(merged, shape_.values(), out + row * row_bytes(num_blocks(shape_.values())));
}

}  // namespace bita
