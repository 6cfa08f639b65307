#include "merging.h"

#include <algorithm>
#include <array>
#include <cstddef>

namespace bita {

namespace {

constexpr size_t kFewSymbols = 32;  // up to this size scanning all pairs is faster than a heap
constexpr uint32_t kNoRank = UINT32_MAX;

// Merges a word of few symbols. Each pair is looked up once, and all pairs are compared each time.
void merge_few(const MergeTable& merges, std::vector<uint32_t>& symbols) {
  size_t size = symbols.size();
  std::array<Merge, kFewSymbols> found;  // merge of symbols i and i + 1
  const auto look_up = [&](size_t i) {
    const Merge* merge = merges.find(symbols[i], symbols[i + 1]);
    found[i] = merge ? *merge : Merge{kNoRank, 0};
  };
  for (size_t i = 0; i + 1 < size; ++i) look_up(i);
  while (size > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < size; ++i) {
      if (found[i].rank < found[best].rank) best = i;
    }
    if (found[best].rank == kNoRank) break;
    symbols[best] = found[best].id;
    for (size_t i = best + 1; i + 1 < size; ++i) {
      symbols[i] = symbols[i + 1];
      found[i] = found[i + 1];
    }
    --size;
    if (best > 0) look_up(best - 1);
    if (best + 1 < size) look_up(best);
  }
  symbols.resize(size);
}

// A word of many symbols, as a linked list of the remaining symbols and a heap of pairs. An entry
// of the heap is stale if one of its symbols has been merged since.
class LongWord {
 public:
  LongWord(const MergeTable& merges, std::vector<uint32_t>& symbols)
      : merges_(merges), ids_(symbols), neighbors_(symbols.size()) {
    for (size_t i = 0; i < symbols.size(); ++i) {
      neighbors_[i] = {i == 0 ? kEnd : static_cast<uint32_t>(i - 1), static_cast<uint32_t>(i + 1)};
    }
    neighbors_.back().next = kEnd;
    for (uint32_t i = 0; i + 1 < symbols.size(); ++i) collect(i);
    std::make_heap(heap_.begin(), heap_.end(), comes_later);
  }

  void merge() {
    while (!heap_.empty()) {
      std::pop_heap(heap_.begin(), heap_.end(), comes_later);
      const Entry entry = heap_.back();
      heap_.pop_back();
      const uint32_t right = neighbors_[entry.at].next;
      if (ids_[entry.at] != entry.left || right == kEnd || ids_[right] != entry.right) continue;
      join(entry.at, right);
    }
    size_t size = 0;
    for (uint32_t at = 0; at != kEnd; at = neighbors_[at].next) ids_[size++] = ids_[at];
    ids_.resize(size);
  }

 private:
  static constexpr uint32_t kEnd = UINT32_MAX;
  static constexpr uint32_t kGone = UINT32_MAX;  // id of a symbol merged into another
  struct Neighbors {
    uint32_t previous;
    uint32_t next;
  };
  struct Entry {
    uint32_t rank;
    uint32_t at;
    uint32_t left;
    uint32_t right;
  };

  static bool comes_later(const Entry& a, const Entry& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.at > b.at;
  }

  bool collect(uint32_t at) {
    const uint32_t right = neighbors_[at].next;
    if (right == kEnd) return false;
    const Merge* merge = merges_.find(ids_[at], ids_[right]);
    if (merge) heap_.push_back({merge->rank, at, ids_[at], ids_[right]});
    return merge != nullptr;
  }

  void push(uint32_t at) {
    if (collect(at)) std::push_heap(heap_.begin(), heap_.end(), comes_later);
  }

  void join(uint32_t at, uint32_t right) {
    ids_[at] = merges_.find(ids_[at], ids_[right])->id;
    ids_[right] = kGone;
    neighbors_[at].next = neighbors_[right].next;
    if (neighbors_[at].next != kEnd) neighbors_[neighbors_[at].next].previous = at;
    if (neighbors_[at].previous != kEnd) push(neighbors_[at].previous);
    push(at);
  }

  const MergeTable& merges_;
  std::vector<uint32_t>& ids_;
  std::vector<Neighbors> neighbors_;
  std::vector<Entry> heap_;
};

}  // namespace

void merge_pairs(const MergeTable& merges, std::vector<uint32_t>& symbols) {
  if (symbols.size() < 2) return;
  if (symbols.size() <= kFewSymbols) {
    merge_few(merges, symbols);
  } else {
    LongWord(merges, symbols).merge();
  }
}

}  // namespace bita
