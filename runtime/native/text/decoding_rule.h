// How the strings of a vocabulary become text.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "../base/json.h"

namespace bita {

// What is done to the string of a token, wherever it stands in a text.
struct DecodingStep {
  enum class Kind { kReplace, kBytes, kStrip };  // kBytes: "<0x41>" is a byte
  Kind kind;
  std::string old;          // what is replaced, or the character that is stripped
  std::string replacement;  // of every token but the first
  std::string first_replacement;
  size_t max_start = 0;  // how often the character is stripped
  size_t max_end = 0;
};

// How the strings of tokens become text, read from a tokenizer's decoder.
//
// Text is shown while it grows, so a token's bytes may not depend on what follows it. That holds
// for the decoders of byte-level and of SentencePiece vocabularies; the others are refused.
class DecodingRule {
 public:
  // decoder: of a tokenizer.json. Throws Fault(kEngine) if it is not a supported one.
  static DecodingRule parse(const Json& decoder);

  // Appends the bytes of a token.
  // is_first: no token of the text was shown before.
  void append(std::string_view token, bool is_first, std::string& bytes) const;

  // Whether the first token of a text is written in its own way.
  bool has_first() const { return has_first_; }

  // Taken off the start of a text, at most `strip_count` times.
  const std::string& strip_text() const { return strip_text_; }
  size_t strip_count() const { return strip_count_; }

 private:
  bool is_byte_level_ = false;
  bool has_space_before_ = false;  // each token has, where there is no decoder
  bool has_first_ = false;
  std::vector<DecodingStep> steps_;
  std::string strip_text_;
  size_t strip_count_ = 0;
};

}  // namespace bita
