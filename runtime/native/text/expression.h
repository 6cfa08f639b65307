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

// Immutable: several threads may use one.
class Expression {
 public:
  // pattern: in PCRE2's syntax. Throws std::runtime_error with the reason if it is not one.
  explicit Expression(const std::string& pattern);

  // The matches in `text`, which is UTF-8, from left to right. None is empty where the one before
  // it ends. Throws TooSlow for one that tries too many ways, and at the deadline.
  std::vector<Match> matches(std::string_view text, const Deadline& deadline) const;

 private:
  struct Free {
    void operator()(void* code) const;
  };
  std::unique_ptr<void, Free> code_;
};

// The pattern that matches `text` as it is written.
std::string literal_pattern(std::string_view text);

}  // namespace bita
