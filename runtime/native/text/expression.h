// Regular expressions, matched by PCRE2.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "deadline.h"

namespace bita {

struct Match {
  size_t start;
  size_t end;
};

// A compiled regular expression. Immutable and thread-safe.
class Expression {
 public:
  // pattern: in PCRE2's syntax. Throws std::runtime_error with the reason if it is invalid.
  explicit Expression(const std::string& pattern);

  // Returns the matches in `text`, which must be UTF-8, from left to right. A match directly after
  // another one is never empty. Throws TooSlow if a search backtracks too much, and at the
  // deadline.
  std::vector<Match> matches(std::string_view text, const Deadline& deadline) const;

 private:
  struct Free {
    void operator()(void* code) const;
  };
  std::unique_ptr<void, Free> code_;
};

// Returns a pattern that matches `text` literally.
std::string literal_pattern(std::string_view text);

}  // namespace bita
