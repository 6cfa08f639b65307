// Drafts from the text so far: the continuation of the latest earlier passage that reads like its
// end.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace bita {

constexpr int64_t kLongestNgram = 4;  // maximum length of an n-gram that is looked up
constexpr int64_t kMaxMatch = 12;     // maximum length of a match that is measured

// Remembers where each run of `length` tokens was last continued. Slots hold positions in the text,
// or 0 if empty; the tokens themselves are read from the text.
class Runs {
 public:
  explicit Runs(int64_t length) : length_(length) {}
  void clear();

  // Record that the run before `place` continues there.
  void set(const std::vector<int64_t>& text, int64_t place);

  // The position at which the run before `end` was last continued; 0 if never.
  int64_t find(const std::vector<int64_t>& text, int64_t end) const;

 private:
  size_t slot_of(const std::vector<int64_t>& text, int64_t end) const;
  void grow(const std::vector<int64_t>& text);

  int64_t length_;
  int64_t num_set_ = 0;
  std::vector<int64_t> slots_;  // size is a power of two; at least half are empty
};

// Implements `NgramIndex` of runtime/decoding/ngrams.py: prompt lookup (Saxena 2023), which prefers
// the longest match and then its latest occurrence. The cost of a token does not depend on the
// length of the text.
class NgramIndex {
 public:
  void clear();
  void extend(const int64_t* token_ids, int64_t count);

  // Number of tokens, at most kMaxMatch, by which the end of the text matches what precedes
  // `following(0)`; 0 without a match.
  int64_t match_length() const { return match_length_; }

  // The token `number` places after the longest match, counted from 0. Places after the end of the
  // text repeat what follows the match. There must be a match.
  int64_t following(int64_t number) const;

 private:
  void look_up();

  std::vector<int64_t> text_;
  int64_t match_length_ = 0;
  int64_t match_place_ = 0;  // one past its last occurrence
  std::array<Runs, kLongestNgram> runs_{Runs(1), Runs(2), Runs(3), Runs(4)};
};

}  // namespace bita
