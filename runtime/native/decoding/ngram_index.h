// Drafts from the text so far: what followed the last time that it read as it does now.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace bita {

constexpr int64_t kLongestNgram = 4;  // tokens of an n-gram that is looked up
constexpr int64_t kMaxMatch = 12;     // tokens of a match that are counted

// Where each run of `length` tokens of a text was last continued. Slots hold places of the text, 0
// where they are empty; the tokens themselves are looked up in the text.
class Runs {
 public:
  explicit Runs(int64_t length) : length_(length) {}
  void clear();

  // The run in front of `place` is continued there.
  void set(const std::vector<int64_t>& text, int64_t place);

  // The place where the run in front of `end` was last continued; 0 for none.
  int64_t find(const std::vector<int64_t>& text, int64_t end) const;

 private:
  size_t slot_of(const std::vector<int64_t>& text, int64_t end) const;
  void grow(const std::vector<int64_t>& text);

  int64_t length_;
  int64_t num_set_ = 0;
  std::vector<int64_t> slots_;  // as many as a power of two, at least half of them empty
};

// `NgramIndex` of runtime/decoding/ngrams.py: prompt lookup (Saxena 2023), with the longest match
// first and the latest occurrence of it. A token costs the same however long the text is.
class NgramIndex {
 public:
  void clear();
  void extend(const int64_t* token_ids, int64_t count);

  // Tokens at the end of the text that stand in front of what `following` gives, at most kMaxMatch;
  // 0 for none.
  int64_t match_length() const { return match_length_; }

  // The token that stands `number` places, from 0, after the longest match. Places after the end of
  // the text repeat what follows the match. There must be a match.
  int64_t following(int64_t number) const;

 private:
  void look_up();

  std::vector<int64_t> text_;
  int64_t match_length_ = 0;
  int64_t match_place_ = 0;  // after its last occurrence
  std::array<Runs, kLongestNgram> runs_{Runs(1), Runs(2), Runs(3), Runs(4)};
};

}  // namespace bita
