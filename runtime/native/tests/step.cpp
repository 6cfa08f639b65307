#include "step.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "../kernels/numbers.h"
#include "../operators/attention.h"

namespace bita::tests {
namespace {

constexpr int64_t kNumPages = 40;

double number(const Value& cache, int64_t cell) {
  if (cache.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) {
    float value;
    std::memcpy(&value, cache.bytes.data() + 4 * cell, 4);
    return value;
  }
  uint16_t half;
  std::memcpy(&half, cache.bytes.data() + 2 * cell, 2);
  return from_half(half);
}

void put(Value& cache, int64_t cell, float value) {
  if (cache.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT)
    cache.set(cell, value);
  else
    cache.set(cell, to_half(value));
}

// RMS norm (if there are weights) and rotary embedding of a head.
std::vector<double> turned(const Step& step, const float* head, const std::vector<float>& weight,
                           int64_t position) {
  const int64_t size = step.shape.head_dim, half = step.shape.half;
  std::vector<double> x(head, head + size);
  if (step.shape.has_norms) {
    double squares = 0;
    for (const double value : x) squares += value * value;
    const double factor = 1 / std::sqrt(squares / static_cast<double>(size) + 1e-5f);
    for (size_t i = 0; i < x.size(); ++i) x[i] *= factor * weight[i];
  }
  for (int64_t i = 0; i < half; ++i) {
    const double c = step.cos[static_cast<size_t>(position * half + i)];
    const double s = step.sin[static_cast<size_t>(position * half + i)];
    double &a = x[static_cast<size_t>(i)], &b = x[static_cast<size_t>(i + half)];
    const double first = a * c - b * s;
    b = b * c + a * s;
    a = first;
  }
  return x;
}

// Take `count` free pages.
std::vector<int64_t> take_pages(std::vector<int64_t>& free, int64_t count) {
  const std::vector<int64_t> taken(free.end() - count, free.end());
  free.resize(free.size() - static_cast<size_t>(count));
  return taken;
}

// Add the rows of a text: each continues a random earlier one, or the text. Slots have gaps.
void add_rows(Random& random, Step& step, int64_t text, int64_t count, bool is_chain) {
  const size_t first = step.rows.size();
  int64_t slot = step.texts[static_cast<size_t>(text)].length;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t parent = is_chain ? i - 1 : std::max<int64_t>(i - 1 - random.below(4), -1);
    Row row{text, slot, 0, step.prefix_length && random.below(3) != 0, {}, {}};
    if (parent >= 0) row.seen = step.rows[first + static_cast<size_t>(parent)].seen;
    row.seen.push_back(static_cast<int64_t>(step.rows.size()));
    row.position =
        step.texts[static_cast<size_t>(text)].length + static_cast<int64_t>(row.seen.size()) - 1;
    row.qkv = random.reals(step.shape.width(), 1.5f);
    slot += 1 + (is_chain ? 0 : random.below(2));
    step.rows.push_back(std::move(row));
  }
}

// Random keys and values in the slots [first, last) of pages.
void fill(Random& random, Step& step, const std::vector<int64_t>& pages, int64_t first,
          int64_t last) {
  for (int64_t slot = first; slot < last; ++slot)
    for (int64_t head = 0; head < step.shape.num_kv_heads; ++head)
      for (int64_t d = 0; d < step.shape.head_dim; ++d)
        for (const bool is_key : {true, false})
          put(step.past, step.cell(pages[static_cast<size_t>(slot / kPage)], slot, head, d, is_key),
              random.real());
}

void add_tables(Random& random, Step& step) {
  const Shape& shape = step.shape;
  for (int64_t position = 0; position < Step::kPositions; ++position)
    for (int64_t i = 0; i < shape.half; ++i) {
      const double angle = static_cast<double>(position) / std::pow(50.0, i / 7.0);
      step.cos.push_back(static_cast<float>(std::cos(angle)));
      step.sin.push_back(static_cast<float>(std::sin(angle)));
    }
  if (!shape.has_norms) return;
  step.q_norm = random.reals(shape.head_dim, 2.0f);
  step.k_norm = random.reals(shape.head_dim, 2.0f);
}

// Add texts with pages for their rows, the first of which they share, and their rows.
void add_texts(Random& random, Step& step, const Amount& amount, std::vector<int64_t>& free) {
  const std::vector<int64_t> shared = take_pages(free, amount.num_shared_pages);
  for (size_t i = 0; i < amount.lengths.size(); ++i) {
    step.texts.push_back({amount.lengths[i], shared});
    add_rows(random, step, static_cast<int64_t>(i), amount.rows[i], amount.is_chain);
    const int64_t end =
        amount.rows[i] ? step.rows.back().slot + 1 : std::max<int64_t>(amount.lengths[i], 1);
    std::vector<int64_t>& pages = step.texts.back().pages;
    const int64_t more = (end + kPage - 1) / kPage - amount.num_shared_pages;
    for (const int64_t page : take_pages(free, std::max<int64_t>(more, 0))) pages.push_back(page);
  }
  if (!amount.fills_cache) return;
  // the last row has the last slot of the last page
  std::vector<int64_t>& pages = step.texts.back().pages;
  for (Text& text : step.texts)
    std::replace(text.pages.begin(), text.pages.end(), kNumPages - 1, pages.back());
  std::replace(step.prefix_pages.begin(), step.prefix_pages.end(), kNumPages - 1, pages.back());
  pages.back() = kNumPages - 1;
  step.rows.back().slot = static_cast<int64_t>(pages.size()) * kPage - 1;
}

}  // namespace

int64_t Step::cell(int64_t page, int64_t slot, int64_t kv_head, int64_t d, bool is_key) const {
  const int64_t size = shape.head_dim, in_page = slot % kPage;
  const int64_t start = (page * shape.num_kv_heads + kv_head) * 2 * kPage * size;
  return start + (is_key ? d * kPage + in_page : (kPage + in_page) * size + d);
}

std::vector<double> Step::cells(const Value& cache, const std::vector<int64_t>& pages, int64_t slot,
                                int64_t kv_head, bool is_key) const {
  const int64_t page = pages[static_cast<size_t>(slot / kPage)];
  std::vector<double> all(static_cast<size_t>(shape.head_dim));
  for (size_t d = 0; d < all.size(); ++d)
    all[d] = number(cache, cell(page, slot, kv_head, static_cast<int64_t>(d), is_key));
  return all;
}

int64_t Step::first_key(const Row& row) const {
  return shape.window ? std::max<int64_t>(0, row.position - shape.window + 1) : 0;
}

std::vector<double> Step::exact_key(const Row& row, int64_t kv_head) const {
  return turned(*this, row.qkv.data() + (shape.num_heads + kv_head) * shape.head_dim, k_norm,
                row.position);
}

std::vector<double> Step::exact_value(const Row& row, int64_t kv_head) const {
  const float* values =
      row.qkv.data() + (shape.num_heads + shape.num_kv_heads + kv_head) * shape.head_dim;
  return {values, values + shape.head_dim};
}

std::vector<double> Step::exact(const Value& present, size_t index) const {
  const Row& row = rows[index];
  const Text& text = texts[static_cast<size_t>(row.text)];
  std::vector<std::pair<const std::vector<int64_t>*, int64_t>> places;  // pages and slot
  for (int64_t slot = 0; row.sees_prefix && slot < prefix_length; ++slot)
    places.emplace_back(&prefix_pages, slot);
  for (int64_t i = first_key(row); i < text.length + static_cast<int64_t>(row.seen.size()); ++i)
    places.emplace_back(
        &text.pages,
        i < text.length
            ? i
            : rows[static_cast<size_t>(row.seen[static_cast<size_t>(i - text.length)])].slot);
  std::vector<double> out;
  for (int64_t head = 0; head < shape.num_heads; ++head) {
    const int64_t kv_head = head / (shape.num_heads / shape.num_kv_heads);
    const std::vector<double> query =
        turned(*this, row.qkv.data() + head * shape.head_dim, q_norm, row.position);
    std::vector<double> sum(query.size(), 0.0);
    double shares = 0;
    for (const auto& [pages, slot] : places) {
      const std::vector<double> key = cells(present, *pages, slot, kv_head, true);
      const std::vector<double> value = cells(present, *pages, slot, kv_head, false);
      double score = 0;
      for (size_t d = 0; d < key.size(); ++d) score += shape.scale * query[d] * key[d];
      if (shape.softcap != 0.0f) score = shape.softcap * std::tanh(score / shape.softcap);
      const double share = std::exp(score);
      shares += share;
      for (size_t d = 0; d < key.size(); ++d) sum[d] += share * value[d];
    }
    for (const double x : sum) out.push_back(places.empty() ? 0.0 : x / shares);
  }
  return out;
}

Node Step::sights_node() const {
  const auto num_rows = static_cast<int64_t>(rows.size());
  const auto num_texts = static_cast<int64_t>(texts.size());
  std::vector<int64_t> positions, slots, row_texts, lengths, pages;
  std::vector<uint8_t> sees(static_cast<size_t>(num_rows * num_rows)), sees_prefix;
  for (int64_t i = 0; i < num_rows; ++i) {
    const Row& row = rows[static_cast<size_t>(i)];
    positions.push_back(row.position);
    slots.push_back(row.slot);
    row_texts.push_back(row.text);
    sees_prefix.push_back(row.sees_prefix ? 1 : 0);
    for (const int64_t other : row.seen) sees[static_cast<size_t>(i * num_rows + other)] = 1;
  }
  size_t most = 0;
  for (const Text& text : texts) most = std::max(most, text.pages.size());
  for (const Text& text : texts) {
    lengths.push_back(text.length);
    pages.insert(pages.end(), text.pages.begin(), text.pages.end());
    pages.resize(lengths.size() * most, 0);
  }
  Node node = Node::of<Sights>();
  node.set("group", shape.num_heads / shape.num_kv_heads);
  node.set("window", shape.window);
  node.feed("positions", ints({1, num_rows}, positions));
  node.feed("row_slots", ints({num_rows}, slots));
  node.feed("row_texts", ints({num_rows}, row_texts));
  node.feed("sees", bools({num_rows, num_rows}, sees));
  node.feed("sees_prefix", bools({num_rows}, sees_prefix));
  node.feed("text_lengths", ints({num_texts}, lengths));
  node.feed("text_pages", ints({num_texts, static_cast<int64_t>(most)}, pages));
  node.feed("prefix_pages", ints({static_cast<int64_t>(prefix_pages.size())}, prefix_pages));
  node.feed("prefix_length", ints({1}, {prefix_length}));
  return node;
}

Value Step::sights() const {
  Node node = sights_node();
  return run(node)[0];
}

void Step::give(Node& node) const {
  node.set("num_heads", shape.num_heads);
  node.set("kv_num_heads", shape.num_kv_heads);
  node.set("head_dim", shape.head_dim);
  node.set("scale", shape.scale);
  node.set("softcap", shape.softcap);
  node.set("epsilon", 1e-5f);
  node.feed("sights", sights());
  node.feed("past", past);
  if (shape.half) {
    node.fix("cos", floats({kPositions, shape.half}, cos));
    node.fix("sin", floats({kPositions, shape.half}, sin));
  }
  if (shape.has_norms) {
    node.fix("q_norm", floats({shape.head_dim}, q_norm));
    node.fix("k_norm", floats({shape.head_dim}, k_norm));
  }
  node.bind(1, "past");
}

Node Step::node() const {
  Node node = Node::of<Attention>();
  std::vector<float> qkv;
  for (const Row& row : rows) qkv.insert(qkv.end(), row.qkv.begin(), row.qkv.end());
  node.feed("qkv", floats({static_cast<int64_t>(rows.size()), shape.width()}, qkv));
  give(node);
  return node;
}

Step Step::reordered(Random& random, std::vector<int64_t>& order) const {
  order.clear();
  std::vector<int64_t> place(rows.size(), -1);  // of each row in the new order
  while (order.size() < rows.size()) {
    const auto next = static_cast<size_t>(random.below(static_cast<int64_t>(rows.size())));
    const auto is_placed = [&](int64_t row) {
      return row == static_cast<int64_t>(next) || place[static_cast<size_t>(row)] >= 0;
    };
    const std::vector<int64_t>& seen = rows[next].seen;
    if (place[next] >= 0 || !std::all_of(seen.begin(), seen.end(), is_placed)) continue;
    place[next] = static_cast<int64_t>(order.size());
    order.push_back(static_cast<int64_t>(next));
  }
  Step other = *this;
  for (size_t i = 0; i < order.size(); ++i) {
    other.rows[i] = rows[static_cast<size_t>(order[i])];
    for (int64_t& seen : other.rows[i].seen) seen = place[static_cast<size_t>(seen)];
  }
  return other;
}

Step Step::alone(const Value& present, size_t index) const {
  Step other = *this;
  Row row = rows[index];
  Text text = texts[static_cast<size_t>(row.text)];
  other.past = present;
  for (size_t i = 0; i + 1 < row.seen.size(); ++i, ++text.length) {
    const int64_t from = rows[static_cast<size_t>(row.seen[i])].slot, to = text.length;
    const int64_t from_page = text.pages[static_cast<size_t>(from / kPage)];
    const int64_t to_page = text.pages[static_cast<size_t>(to / kPage)];
    for (int64_t head = 0; head < shape.num_kv_heads; ++head)
      for (int64_t d = 0; d < shape.head_dim; ++d)
        for (const bool is_key : {true, false})
          put(other.past, cell(to_page, to, head, d, is_key),
              static_cast<float>(number(present, cell(from_page, from, head, d, is_key))));
  }
  row.text = 0;
  row.seen = {0};
  other.texts = {text};
  other.rows = {row};
  return other;
}

Step random_step(Random& random, const Shape& shape, const Amount& amount) {
  Step step;
  step.shape = shape;
  step.prefix_length = amount.prefix_length;
  add_tables(random, step);
  std::vector<int64_t> free = random_order(random, 0, kNumPages);
  step.prefix_pages = take_pages(free, (amount.prefix_length + kPage - 1) / kPage);
  add_texts(random, step, amount, free);
  step.past = zeros(
      shape.is_half ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
      {kNumPages, shape.num_kv_heads, 2, kPage * shape.head_dim});
  const auto num_cells = kNumPages * shape.num_kv_heads * 2 * kPage * shape.head_dim;
  for (int64_t i = 0; i < num_cells; ++i)
    put(step.past, i, std::numeric_limits<float>::quiet_NaN());
  fill(random, step, step.prefix_pages, 0, step.prefix_length);
  for (size_t i = 0; i < step.texts.size(); ++i) {
    int64_t first = step.texts[i].length;
    for (const Row& row : step.rows)
      if (row.text == static_cast<int64_t>(i)) first = std::min(first, step.first_key(row));
    fill(random, step, step.texts[i].pages, first, step.texts[i].length);
  }
  return step;
}

}  // namespace bita::tests
