// Attention over pages, a chunk of positions at a time, written once for all ISAs.
//
// Whatever else a step contains, a row processes its keys in the order of positions: the score of a
// key is summed over the head's dimensions in ascending order, exponentials are summed in lanes of
// a chunk (position % 16) and then like Lanes::sum, values are summed by position, and chunks are
// merged in ascending order.
#pragma once

#include <array>
#include <utility>

#include "row_kernels.h"

namespace bita {
namespace {

struct Half {
  uint16_t bits;
};

inline Lanes load_cells(const float* p) { return Lanes::load(p); }
inline Lanes load_cells(const Half* p) { return Lanes::load_half(&p->bits); }

// Queries at a time: their accumulators and one register for loaded values must fit.
constexpr int kPass = std::min<int>(kMaxQueries, Lanes::kRegisters - 1);

// Pages, or 16 dimensions, at a time: all accumulators and the loaded values must fit in registers.
constexpr int at_a_time(int queries) {
  return std::min(4, std::max(1, Lanes::kRegisters / (queries + 1)));
}

using Scores = float[kMaxQueries][kChunk];

// Cells in a cache line.
template <class Cell>
constexpr int64_t kLineCells = 64 / sizeof(Cell);

// Prefetch a line into the L2 cache: the L1 cache is full of the data in use.
inline void fetch_later(const void* line) { __builtin_prefetch(line, 0, 2); }

// Scores of Q queries with the keys of P pages, written to out[query][16 * page]. Also prefetches
// the keys of the pages `ahead`. Without the pragmas, here and in add_values, g++ keeps the sums in
// memory on aarch64 and stores one after each product.
template <int Q, int P, class Cell>
void score_pages(const float* queries, const void* const* pages, int64_t size,
                 const void* const* ahead, float* out) {
  Lanes sums[Q][P];
  const Cell* keys[P];
  for (int p = 0; p < P; ++p) keys[p] = static_cast<const Cell*>(pages[p]);
#pragma GCC unroll 16
  for (int q = 0; q < Q; ++q)
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) sums[q][p].clear();
  for (int64_t d = 0; d < size; ++d) {
    if (d * kPage % kLineCells<Cell> == 0)
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p) fetch_later(static_cast<const Cell*>(ahead[p]) + d * kPage);
    Lanes key[P];
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) key[p] = load_cells(keys[p] + d * kPage);
#pragma GCC unroll 16
    for (int q = 0; q < Q; ++q) {
      const Lanes query = Lanes::all(queries[q * size + d]);
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p) sums[q][p].add_product(key[p], query);
    }
  }
#pragma GCC unroll 16
  for (int q = 0; q < Q; ++q)
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) sums[q][p].store(out + q * kChunk + p * kPage);
}

// values[query] += sum of weights[query][slot] * value[slot] over slots [first, last) of a chunk,
// for W * 16 dimensions starting at `start`. Also prefetches the values of the pages `ahead`.
template <int Q, int W, class Cell>
void add_values(const float* weights, const void* const* pages, int64_t first, int64_t last,
                int64_t size, int64_t start, const void* const* ahead, float* values) {
  Lanes sums[Q][W];
#pragma GCC unroll 16
  for (int q = 0; q < Q; ++q)
#pragma GCC unroll 16
    for (int w = 0; w < W; ++w) sums[q][w].read(values + q * size + start + w * 16);
  while (first < last) {
    const int64_t stop = std::min(last, (first / kPage + 1) * kPage);
    const Cell* slots =
        static_cast<const Cell*>(pages[first / kPage]) + (kPage + first % kPage) * size + start;
    const Cell* next =
        static_cast<const Cell*>(ahead[first / kPage]) + (kPage + first % kPage) * size + start;
    for (; first < stop; ++first, slots += size, next += size) {
#pragma GCC unroll 16
      for (int64_t at = 0; at < W * 16; at += kLineCells<Cell>) fetch_later(next + at);
      Lanes value[W];
#pragma GCC unroll 16
      for (int w = 0; w < W; ++w) value[w] = load_cells(slots + w * 16);
#pragma GCC unroll 16
      for (int q = 0; q < Q; ++q) {
        const Lanes weight = Lanes::all(weights[q * kChunk + first]);
#pragma GCC unroll 16
        for (int w = 0; w < W; ++w) sums[q][w].add_product(weight, value[w]);
      }
    }
  }
#pragma GCC unroll 16
  for (int q = 0; q < Q; ++q)
#pragma GCC unroll 16
    for (int w = 0; w < W; ++w) sums[q][w].store(values + q * size + start + w * 16);
}

// Scores of Q queries with the keys of `count` pages.
template <int Q, class Cell>
void score_all(const float* queries, const void* const* pages, int64_t count, int64_t size,
               const void* const* ahead, float* out) {
  constexpr int kWide = at_a_time(Q);
  int64_t page = 0;
  for (; page + kWide <= count; page += kWide)
    score_pages<Q, kWide, Cell>(queries, pages + page, size, ahead + page, out + page * kPage);
  for (; page < count; ++page)
    score_pages<Q, 1, Cell>(queries, pages + page, size, ahead + page, out + page * kPage);
}

// Adds the values of slots [first, last) of the chunk for Q queries.
template <int Q, class Cell>
void add_all(const float* weights, const void* const* pages, int64_t first, int64_t last,
             int64_t size, const void* const* ahead, float* values) {
  constexpr int kWide = at_a_time(Q);
  int64_t start = 0;
  for (; start + kWide * 16 <= size; start += kWide * 16)
    add_values<Q, kWide, Cell>(weights, pages, first, last, size, start, ahead, values);
  for (; start < size; start += 16)
    add_values<Q, 1, Cell>(weights, pages, first, last, size, start, ahead, values);
}

template <class Cell>
using ScoreAll = void (*)(const float*, const void* const*, int64_t, int64_t, const void* const*,
                          float*);
template <class Cell>
using AddAll = void (*)(const float*, const void* const*, int64_t, int64_t, int64_t,
                        const void* const*, float*);

template <class Cell, int... Q>
constexpr std::array<ScoreAll<Cell>, sizeof...(Q)> score_table(std::integer_sequence<int, Q...>) {
  return {score_all<Q + 1, Cell>...};
}
template <class Cell, int... Q>
constexpr std::array<AddAll<Cell>, sizeof...(Q)> add_table(std::integer_sequence<int, Q...>) {
  return {add_all<Q + 1, Cell>...};
}

template <class Cell>
class Chunk {
 public:
  explicit Chunk(const ChunkTask& task)
      : task_(task),
        end_(task.begin + kChunk),
        shared_end_(std::clamp(task.shared, task.begin, end_)),
        pages_(task.pages + task.begin / kPage) {
    for (int64_t i = 0; i < kChunk / kPage; ++i)
      ahead_[i] = i < task.num_next ? task.next[i] : task.queries;
  }

  void run() {
    score();
    for (int64_t q = 0; q < task_.num_queries; ++q) weigh(q);
    add();
  }

 private:
  // The positions at which the chunk's part of a query's tail begins and ends.
  int64_t tail_begin() const { return std::max(task_.shared, task_.begin); }
  int64_t tail_end(int64_t q) const { return std::min(task_.stop[q], end_); }

  int32_t tail_slot(int64_t q, int64_t position) const {
    return task_.tails[q][position - task_.shared];
  }

  void score() {
    int64_t past_slots = shared_end_;  // one past the last slot that is read
    for (int64_t q = 0; q < task_.num_queries; ++q)
      if (tail_end(q) > tail_begin())
        past_slots = std::max<int64_t>(past_slots, tail_slot(q, tail_end(q) - 1) + 1);
    const int64_t here = std::min(past_slots, end_) - task_.begin;
    score_into(pages_, (here + kPage - 1) / kPage, scores_[0]);
    for (int64_t q = 0; q < task_.num_queries; ++q) cursor_[q] = tail_begin();
    take_tails(task_.begin, end_, scores_[0], kChunk);
    alignas(64) Scores more;
    for (int64_t slot = end_; slot < past_slots; slot += kChunk) {
      const int64_t count = std::min(past_slots - slot, kChunk);
      score_into(task_.pages + slot / kPage, (count + kPage - 1) / kPage, more[0]);
      take_tails(slot, slot + kChunk, more[0], kChunk);
    }
  }

  void score_into(const void* const* pages, int64_t count, float* out) {
    static constexpr auto kTable = score_table<Cell>(std::make_integer_sequence<int, kPass>());
    for (int64_t q = 0; q < task_.num_queries; q += kPass) {
      const int64_t num = std::min<int64_t>(kPass, task_.num_queries - q);
      kTable[static_cast<size_t>(num - 1)](task_.queries + q * task_.head_dim, pages, count,
                                           task_.head_dim, ahead_, out + q * kChunk);
    }
  }

  // Move scores of tail slots in [first, last) to their positions. A position is never after its
  // slot, and both ascend, so that scores may move within one array.
  void take_tails(int64_t first, int64_t last, const float* from, int64_t stride) {
    for (int64_t q = 0; q < task_.num_queries; ++q) {
      int64_t& position = cursor_[q];
      for (; position < tail_end(q); ++position) {
        const int64_t slot = tail_slot(q, position);
        if (slot >= last) break;
        scores_[q][position - task_.begin] = from[q * stride + slot - first];
      }
    }
  }

  // Replace a query's scores by exponentials, 0 for keys it does not see.
  void weigh(int64_t q) {
    const int64_t begin = std::clamp(task_.first[q] - task_.begin, int64_t{0}, kChunk);
    const int64_t end = std::clamp(task_.stop[q] - task_.begin, int64_t{0}, kChunk);
    float* scores = scores_[q];
    if (task_.softcap != 0.0f && begin < end) cap(scores + begin, end - begin, task_.softcap);
    Lanes top = Lanes::all(-kInfinity);
    for (int64_t i = 0; i < end; i += 16)
      top = Lanes::larger(
          top, Lanes::within(Lanes::load(scores + i), Lanes::all(-kInfinity), begin - i, end - i));
    const float largest = top.largest();
    Lanes sums = Lanes::all(0.0f);
    for (int64_t i = 0; i < kChunk; i += 16) {
      Lanes share = Lanes::all(0.0f);
      if (i < end && begin < end)
        share = Lanes::within(exponential(Lanes::load(scores + i) - Lanes::all(largest)), share,
                              begin - i, end - i);
      share.store(scores + i);
      sums = sums + share;
    }
    task_.maxima[q] = largest;
    task_.sums[q] = sums.sum();
  }

  void add() {
    static constexpr auto kTable = add_table<Cell>(std::make_integer_sequence<int, kPass>());
    const int64_t size = task_.head_dim, num = task_.num_queries;
    std::fill_n(task_.values, num * size, 0.0f);
    const int64_t begin = std::max(*std::min_element(task_.first, task_.first + num), task_.begin);
    for (int64_t q = 0; q < num; q += kPass)
      kTable[static_cast<size_t>(std::min<int64_t>(kPass, num - q) - 1)](
          scores_[q], pages_, begin - task_.begin, shared_end_ - task_.begin, size, ahead_,
          task_.values + q * size);
    for (int64_t q = 0; q < num; ++q)
      for (int64_t p = std::max(tail_begin(), task_.first[q]); p < tail_end(q); ++p)
        add_slot(q, p, tail_slot(q, p));
  }

  void add_slot(int64_t q, int64_t position, int64_t slot) {
    const int64_t size = task_.head_dim;
    const Cell* page = static_cast<const Cell*>(task_.pages[slot / kPage]);
    const Cell* cells = page + (kPage + slot % kPage) * size;
    const Lanes weight = Lanes::all(scores_[q][position - task_.begin]);
    float* values = task_.values + q * size;
    for (int64_t i = 0; i < size; i += 16)
      Lanes::fused(weight, load_cells(cells + i), Lanes::load(values + i)).store(values + i);
  }

  const ChunkTask& task_;
  const int64_t end_;                  // one past the chunk's last position
  const int64_t shared_end_;           // one past the chunk's last position that all queries see
  const void* const* pages_;           // starting with the chunk's first page
  const void* ahead_[kChunk / kPage];  // pages to prefetch
  alignas(64) Scores scores_;
  int64_t cursor_[kMaxQueries];
};

void attend(const ChunkTask& task) {
  if (task.is_half)
    Chunk<Half>(task).run();
  else
    Chunk<float>(task).run();
}

inline float exponential(float x) {
  alignas(64) float lanes[16];
  exponential(Lanes::all(x)).store(lanes);
  return lanes[0];
}

// A chunk in which a query sees nothing has the sum 0 and changes nothing.
void merge(const Partial& chunk, int64_t size, const Partial& total) {
  if (*chunk.sum == 0.0f) return;
  if (*total.sum == 0.0f) {
    *total.maximum = *chunk.maximum;
    *total.sum = *chunk.sum;
    std::copy(chunk.values, chunk.values + size, total.values);
    return;
  }
  const float both = std::max(*total.maximum, *chunk.maximum);
  const float old_share = exponential(*total.maximum - both);
  const float new_share = exponential(*chunk.maximum - both);
  *total.sum = *total.sum * old_share + *chunk.sum * new_share;
  *total.maximum = both;
  const Lanes old_shares = Lanes::all(old_share), new_shares = Lanes::all(new_share);
  for (int64_t i = 0; i < size; i += 16)
    (Lanes::load(total.values + i) * old_shares + Lanes::load(chunk.values + i) * new_shares)
        .store(total.values + i);
}

// Chunks of a query that are merged together, so that their exponentials share lanes.
struct MergedChunks {
  static constexpr int64_t kMax = 16;

  alignas(64) float old_shares[kMax], new_shares[kMax];
  const float* values[kMax];
  float sums[kMax];
  int64_t count;
};

// Gives the same bits as calling `merge` for one chunk after the other. A query that sees nothing
// gets zeros.
void mean(const Partial& chunks, int64_t stride, int64_t count, int64_t size, float* out) {
  MergedChunks some;
  float top = 0.0f, sum = 0.0f;
  std::fill_n(out, size, 0.0f);
  for (int64_t chunk = 0; chunk < count;) {
    std::fill_n(some.old_shares, MergedChunks::kMax, 0.0f);
    std::fill_n(some.new_shares, MergedChunks::kMax, 0.0f);
    for (some.count = 0; chunk < count && some.count < MergedChunks::kMax; ++chunk) {
      const float maximum = chunks.maximum[chunk * stride], own = chunks.sum[chunk * stride];
      const float* values = chunks.values + chunk * stride * size;
      if (own == 0.0f) continue;
      if (sum == 0.0f) {
        top = maximum;
        sum = own;
        std::copy_n(values, size, out);
        continue;
      }
      const float both = std::max(top, maximum);
      some.old_shares[some.count] = top - both;
      some.new_shares[some.count] = maximum - both;
      some.sums[some.count] = own;
      some.values[some.count++] = values;
      top = both;
    }
    exponential(Lanes::load(some.old_shares)).store(some.old_shares);
    exponential(Lanes::load(some.new_shares)).store(some.new_shares);
    for (int64_t i = 0; i < some.count; ++i)
      sum = sum * some.old_shares[i] + some.sums[i] * some.new_shares[i];
    for (int64_t d = 0; d < size; d += 16) {
      Lanes total = Lanes::load(out + d);
      for (int64_t i = 0; i < some.count; ++i)
        total = total * Lanes::all(some.old_shares[i]) +
                Lanes::load(some.values[i] + d) * Lanes::all(some.new_shares[i]);
      total.store(out + d);
    }
  }
  const Lanes divisor = Lanes::all(sum == 0.0f ? 1.0f : sum);
  for (int64_t d = 0; d < size; d += 16) (Lanes::load(out + d) / divisor).store(out + d);
}

void write_key(const float* key, int64_t size, int64_t slot, bool is_half, void* page) {
  if (!is_half) {
    float* cells = static_cast<float*>(page) + slot;
    for (int64_t d = 0; d < size; ++d) cells[d * kPage] = key[d];
    return;
  }
  uint16_t* cells = static_cast<uint16_t*>(page) + slot;
  for (int64_t start = 0; start < size; start += 16) {
    uint16_t halves[16];
    Lanes::load(key + start).store_half(halves);
    for (int64_t d = 0; d < 16; ++d) cells[(start + d) * kPage] = halves[d];
  }
}

void write_value(const float* value, int64_t size, int64_t slot, bool is_half, void* page) {
  const int64_t first = (kPage + slot) * size;
  for (int64_t i = 0; i < size; i += 16) {
    if (is_half)
      Lanes::load(value + i).store_half(static_cast<uint16_t*>(page) + first + i);
    else
      Lanes::load(value + i).store(static_cast<float*>(page) + first + i);
  }
}

}  // namespace
}  // namespace bita
