// Conversion of token strings to text.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "../base/json.h"

namespace bita {

// A step that transforms the string of a token, wherever it is in a text.
struct DecodingStep {
  enum class Kind { kReplace, kBytes, kStrip };  // kBytes: "<0x41>" becomes a byte
  Kind kind;
  std::string old;                // replaced text, or the character that is stripped
  std::string replacement;        // in every token except the first
  std::string first_replacement;  // in the first token
  size_t max_start = 0;           // characters stripped at the start, at most
  size_t max_end = 0;             // characters stripped at the end, at most
};

// Converts the strings of tokens to text, according to a tokenizer's decoder.
//
// Text is shown while it grows, so a token's bytes must not depend on what follows it. That holds
// for the decoders of byte-level and SentencePiece vocabularies; others are refused.
class DecodingRule {
 public:
  // Reads the "decoder" of a tokenizer.json. Throws Fault(kEngine) if it is not supported.
  static DecodingRule parse(const Json& decoder);

  // Appends the bytes of a token.
  // is_first: whether it is the first token of the text that is shown.
  void append(std::string_view token, bool is_first, std::string& bytes) const;

  // Returns whether the first token of a text is converted differently.
  bool has_first() const { return has_first_; }

  // The text that is stripped from the start of a text, at most `strip_count` times.
  const std::string& strip_text() const { return strip_text_; }
  size_t strip_count() const { return strip_count_; }

 private:
  bool is_byte_level_ = false;
  bool has_space_before_ = false;  // of each token, if there is no decoder
  bool has_first_ = false;
  std::vector<DecodingStep> steps_;
  std::string strip_text_;
  size_t strip_count_ = 0;
};

}  // namespace bita
