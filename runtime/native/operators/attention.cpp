#include "attention.h"

#include <algorithm>
#include <cstring>

#include "../kernels/roads.h"
#include "sights.h"

namespace bita {
namespace {

// One key-value head of a block of rows, in one chunk of positions of the prefix or of the text.
struct Item {
  size_t block;
  int64_t kv_head;
  int64_t chunk;  // from -(chunks of the prefix) on; those from 0 on are of the text
  int64_t start;  // of its queries' results
};

struct Shape {
  int64_t num_heads, num_kv_heads, head_dim;
  int64_t group() const { return num_heads / num_kv_heads; }
  int64_t width() const { return (num_heads + 2 * num_kv_heads) * head_dim; }
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

constexpr int64_t kMaxHeadDim = 1024;

int64_t chunk_count(int64_t slots) { return (slots + kChunk - 1) / kChunk; }

// Attention of one step: items, and the results of their queries.
class StepAttention {
 public:
  StepAttention(const Shape& shape, const StepPlace& place, const Pages& pages, int64_t window,
                float softcap, const float* heads)
      : shape_(shape),
        place_(place),
        pages_(pages),
        softcap_(softcap),
        heads_(heads),
        sights_(sights(place, window)),
        blocks_(row_blocks(place, sights_, std::max<int64_t>(1, kMaxQueries / shape.group()))) {
    list_pages();
    list_items();
  }

  int64_t num_items() const { return static_cast<int64_t>(items_.size()); }

  // Compute all items, then each row's merged values, quantized.
  void run(const NodeRun& node, uint8_t* out) {
    const size_t results = static_cast<size_t>(num_results_);
    maxima_.resize(results);
    sums_.resize(results);
    values_.resize(results * static_cast<size_t>(shape_.head_dim));
    node.parallel(num_items(), [&](int64_t i) { attend(items_[static_cast<size_t>(i)]); });
    const int64_t width = shape_.num_heads * shape_.head_dim;
    const int64_t work = place_.num_rows * width * 8;
    node.parallel(place_.num_rows, work, [&](int64_t row) { finish(row, out); });
  }

 private:
  struct BlockItems {
    int64_t first_chunk, num_chunks;
    int64_t start;  // of the results of its first kv head, [kv head][chunk][query]
  };

  // For each text and kv head the memory of its pages, and of the prefix's.
  void list_pages() {
    const int64_t heads = shape_.num_kv_heads, wide = place_.pages_per_text;
    text_pages_.resize(static_cast<size_t>(place_.num_texts * heads * wide));
    for (int64_t text = 0; text < place_.num_texts; ++text)
      for (int64_t head = 0; head < heads; ++head)
        for (int64_t i = 0; i < used_pages(text); ++i)
          text_pages_[static_cast<size_t>((text * heads + head) * wide + i)] =
              pages_.at(place_.page(text, i * kPage), head);
    const int64_t prefix = (place_.prefix_length + kPage - 1) / kPage;
    prefix_pages_.resize(static_cast<size_t>(heads * prefix));
    for (int64_t head = 0; head < heads; ++head)
      for (int64_t i = 0; i < prefix; ++i)
        prefix_pages_[static_cast<size_t>(head * prefix + i)] =
            pages_.at(place_.prefix_pages.as<int64_t>()[i], head);
  }

  // Pages of a text that this step reads or writes.
  int64_t used_pages(int64_t text) const {
    int64_t slots = place_.length(text);
    for (int64_t row = 0; row < place_.num_rows; ++row)
      if (place_.text(row) == text) slots = std::max(slots, place_.slot(row) + 1);
    return (slots + kPage - 1) / kPage;
  }

  void list_items() {
    for (size_t index = 0; index < blocks_.size(); ++index) {
      const RowBlock& block = blocks_[index];
      const int64_t prefix = block.sees_prefix ? chunk_count(place_.prefix_length) : 0;
      const int64_t skipped = std::min(block.first, block.stop) / kChunk;
      const int64_t text = chunk_count(block.stop);
      block_items_.push_back({skipped, prefix + text - skipped, num_results_});
      for (int64_t head = 0; head < shape_.num_kv_heads; ++head)
        for (int64_t i = 0; i < prefix + text - skipped; ++i) {
          items_.push_back({index, head, i < prefix ? i - prefix : skipped + i - prefix,
                            num_results_});
          num_results_ += num_queries(block);
        }
    }
  }

  int64_t num_queries(const RowBlock& block) const { return block.num_rows * shape_.group(); }

  void attend(const Item& item) {
    const RowBlock& block = blocks_[item.block];
    const int64_t group = shape_.group(), size = shape_.head_dim;
    // a group of more heads than a task takes is several tasks of one row
    for (int64_t head = 0; head < group; head += kMaxQueries) {
      const int64_t heads = std::min(group - head, kMaxQueries);
      const int64_t num_queries = block.num_rows * heads;
      float queries[kMaxQueries * kMaxHeadDim];
      int64_t first[kMaxQueries], stop[kMaxQueries];
      const int32_t* tails[kMaxQueries];
      ChunkTask task{};
      const bool is_prefix = item.chunk < 0;
      const int64_t length = place_.length(block.text);
      task.shared = is_prefix ? place_.prefix_length : length + block.num_common;
      for (int64_t q = 0; q < num_queries; ++q) {
        const int64_t row = block.first_row + q / heads;
        const Sight& sight = sights_[static_cast<size_t>(row)];
        const int64_t number = item.kv_head * group + head + q % heads;
        std::memcpy(queries + q * size, heads_ + row * shape_.width() + number * size,
                    static_cast<size_t>(size) * sizeof(float));
        first[q] = is_prefix ? 0 : sight.first;
        stop[q] = is_prefix ? place_.prefix_length : sight.stop;
        tails[q] = is_prefix ? nullptr : sight.tail.data() + block.num_common;
      }
      task.head_dim = size;
      task.num_queries = num_queries;
      task.queries = queries;
      task.pages = is_prefix ? prefix_pages(item.kv_head) : text_pages(block.text, item.kv_head);
      task.begin = kChunk * (is_prefix ? item.chunk + chunk_count(place_.prefix_length) : item.chunk);
      task.first = first;
      task.stop = stop;
      task.tails = tails;
      task.softcap = softcap_;
      task.is_half = pages_.is_half;
      const size_t start = static_cast<size_t>(item.start + head);
      task.maxima = maxima_.data() + start;
      task.sums = sums_.data() + start;
      task.values = values_.data() + start * static_cast<size_t>(size);
      kernels().attend(task);
    }
  }

  const void* const* text_pages(int64_t text, int64_t kv_head) const {
    return text_pages_.data() + (text * shape_.num_kv_heads + kv_head) * place_.pages_per_text;
  }
  const void* const* prefix_pages(int64_t kv_head) const {
    return prefix_pages_.data() + kv_head * ((place_.prefix_length + kPage - 1) / kPage);
  }

  void finish(int64_t row, uint8_t* out) {
    size_t index = 0;
    while (row >= blocks_[index].first_row + blocks_[index].num_rows) ++index;
    const RowBlock& block = blocks_[index];
    const BlockItems& items = block_items_[index];
    const int64_t size = shape_.head_dim, width = shape_.num_heads * size;
    const int64_t stride = num_queries(block), group = shape_.group();
    std::vector<float> merged(static_cast<size_t>(width));
    for (int64_t head = 0; head < shape_.num_heads; ++head) {
      const int64_t start = items.start + head / group * items.num_chunks * stride +
                            (row - block.first_row) * group + head % group;
      kernels().merge(maxima_.data() + start, sums_.data() + start,
                      values_.data() + start * size, stride, items.num_chunks, size,
                      merged.data() + head * size);
    }
    kernels().quantize(merged.data(), width, out + row * row_bytes(num_blocks(width)));
  }

  const Shape& shape_;
  const StepPlace& place_;
  const Pages& pages_;
  const float softcap_;
  const float* heads_;  // [Q, width]: turned queries, then keys and values
  const std::vector<Sight> sights_;
  const std::vector<RowBlock> blocks_;
  std::vector<BlockItems> block_items_;
  std::vector<Item> items_;
  std::vector<const void*> text_pages_, prefix_pages_;
  int64_t num_results_ = 0;
  std::vector<float> maxima_, sums_, values_;
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
  if (2 * cos_.dims[1] > head_dim_) throw std::runtime_error("cos is wider than half a head");
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
  if (!pages.data) throw std::runtime_error("present is not used");
  if (pages.data != past.data)
    std::memcpy(pages.data, past.data,
                static_cast<size_t>(num_pages * num_kv_heads_ * pages.head_bytes()));
  std::vector<float> heads(qkv.as<float>(), qkv.as<float>() + num_rows * shape.width());
  const int64_t work = num_rows * shape.width() * 4;
  node.parallel(num_rows, work, [&](int64_t row) {
    turn_row(place, row, heads.data() + row * shape.width());
    write_row(place, row, heads.data() + row * shape.width(), pages.data, pages.is_half);
  });
  StepAttention attention(shape, place, pages, window_, softcap_, heads.data());
  attention.run(node, out);
}

void Attention::turn_row(const StepPlace& place, int64_t row, float* heads) const {
  const int64_t half = cos_ ? cos_.dims[1] : 0, position = place.position(row);
  const float* cos = cos_ ? cos_.as<float>() + position * half : nullptr;
  const float* sin = cos_ ? sin_.as<float>() + position * half : nullptr;
  for (int64_t head = 0; head < num_heads_ + num_kv_heads_; ++head) {
    const bool is_query = head < num_heads_;
    kernels().turn(heads + head * head_dim_, is_query ? q_norm_ : k_norm_, epsilon_, cos, sin, half,
                   head_dim_, is_query ? scale_ : 1.0f);
  }
}

void Attention::write_row(const StepPlace& place, int64_t row, const float* heads, void* data,
                          bool is_half) const {
  const Pages pages{static_cast<uint8_t*>(data), num_kv_heads_, head_dim_, is_half};
  const int64_t slot = place.slot(row), page = place.page(place.text(row), slot);
  for (int64_t head = 0; head < num_kv_heads_; ++head)
    kernels().write_slot(heads + (num_heads_ + head) * head_dim_,
                         heads + (num_heads_ + num_kv_heads_ + head) * head_dim_, head_dim_,
                         slot % kPage, is_half, pages.at(page, head));
}

}  // namespace bita
