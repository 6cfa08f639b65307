// Special tokens as stop strings.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "token_text.h"

namespace bita {

// The special tokens in some stop strings, as bytes that no UTF-8 text holds.
//
// Special tokens are shown as nothing, so a stop string such as "\n<|end|>" would never be found.
// For each special token in a stop string there is a mark, which stands for the token in the text
// that is searched, and for its string in `stops`. What is shown goes through `shown`.
class SpecialMarks {
 public:
  SpecialMarks(const std::vector<std::string>& stops, const TextCodec& codec);

  // The stop strings that have special tokens in them, with marks for these.
  const std::vector<std::string>& stops() const { return stops_; }

  // The mark of a special token that a stop string has, or nullptr.
  const std::string* mark(int32_t token_id) const;

  // The text without its marks.
  std::string shown(std::string text) const;

 private:
  const std::string& mark_of(std::string_view special);

  std::vector<std::string> stops_;
  std::unordered_map<std::string, std::string> marks_;  // by the special token's string
  std::unordered_map<int64_t, std::string> marks_by_id_;
};

}  // namespace bita
