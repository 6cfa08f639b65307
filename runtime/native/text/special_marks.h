// Special tokens in stop strings.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "token_text.h"

namespace bita {

// Represents the special tokens in stop strings by marks: byte sequences that UTF-8 text never has.
//
// Special tokens are not shown, so a stop string such as "\n<|end|>" would never be found.
// Therefore each special token in a stop string gets a mark, which replaces the token in the
// searched text and its string in `stops`. `shown` removes the marks from text that is shown.
class SpecialMarks {
 public:
  SpecialMarks(const std::vector<std::string>& stops, const TextCodec& codec);

  // Returns the stop strings that contain special tokens, with marks in place of these.
  const std::vector<std::string>& stops() const { return stops_; }

  // Returns the mark of a special token that occurs in a stop string, or nullptr.
  const std::string* mark(int32_t token_id) const;

  // Returns the text without marks.
  std::string shown(std::string text) const;

 private:
  const std::string& mark_of(std::string_view special);

  std::vector<std::string> stops_;
  std::unordered_map<std::string, std::string> marks_;  // by the special token's string
  std::unordered_map<int64_t, std::string> marks_by_id_;
};

}  // namespace bita
