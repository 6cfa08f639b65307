// A cursor over a regular expression, which is read from front to back.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>
#include <string_view>

#include "utf8.h"

namespace bita {

[[noreturn]] inline void refuse_pattern(std::string_view part) {
  part = part.substr(0, utf8_error(part));  // it may have been cut within a character
  throw std::runtime_error("'" + std::string(part) + "' in a regular expression is not supported");
}

class PatternCursor {
 public:
  explicit PatternCursor(std::string_view pattern) : rest_(pattern) {}

  bool at_end() const { return rest_.empty(); }
  std::string_view rest() const { return rest_; }

  // Returns the next byte, or 0 at the end.
  char peek() const { return rest_.empty() ? '\0' : rest_[0]; }

  bool starts(std::string_view text) const { return rest_.substr(0, text.size()) == text; }

  bool is_one_of(std::string_view marks) const {
    return !rest_.empty() && marks.find(rest_[0]) != std::string_view::npos;
  }

  // Skips `text` if it comes next, and returns whether it did.
  bool take(std::string_view text) {
    if (!starts(text)) return false;
    rest_.remove_prefix(text.size());
    return true;
  }

  void skip(size_t num_bytes) { rest_.remove_prefix(num_bytes); }

  // Reads the next character.
  std::string_view character() {
    if (rest_.empty()) refuse_pattern("\\ at the end");
    const std::string_view found = rest_.substr(0, utf8_length(rest_[0]));
    rest_.remove_prefix(found.size());
    return found;
  }

 private:
  std::string_view rest_;
};

}  // namespace bita
