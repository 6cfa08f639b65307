// Encoding of prompts to token ids, and incremental decoding of committed token ids to text.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "decoding_rule.h"
#include "token_matcher.h"
#include "tokenizer.h"
#include "utf8_decoder.h"

namespace bita {

// A tokenizer and the rule that decodes its tokens.
//
// Special tokens and ids outside the vocabulary (a padded embedding table has some) decode to
// nothing. Each byte that is not UTF-8 becomes a U+FFFD. All functions are thread-safe.
class TextCodec {
 public:
  // Throws Fault(kEngine) if the tokenizer's decoder is not supported.
  explicit TextCodec(Tokenizer tokenizer);

  // Reads a tokenizer.json like `Tokenizer::parse`; all faults name the `subject`.
  // num_rows: number of rows of the model's embedding table; none if unknown.
  static TextCodec parse(std::string_view json, const std::string& subject, const std::string& fix,
                         std::optional<int64_t> num_rows = std::nullopt);

  const Tokenizer& tokenizer() const { return tokenizer_; }
  const DecodingRule& rule() const { return rule_; }

  std::vector<int32_t> encode(std::string_view text, bool add_special_tokens) const {
    return tokenizer_.encode(text, add_special_tokens);
  }
  size_t num_tokens() const { return tokenizer_.num_tokens(); }
  std::optional<int32_t> token_id(std::string_view token) const {
    return tokenizer_.token_id(token);
  }

  // Decodes `ids`. Equals the pieces of an IncrementalText joined.
  std::string decode(const std::vector<int32_t>& ids) const;

  // Returns whether `text` starts with a special token.
  bool starts_special(std::string_view text) const;

  // Returns the string of a token that is text; none for special tokens and unknown ids.
  std::optional<std::string_view> shown_token(int64_t id) const;

  // Returns the string of a special token that decodes to nothing, or nullptr for other ids. A
  // special token whose string was normalized is shown.
  const std::string* hidden_token(int64_t id) const;

  // Returns the longest special token that begins at `start` of `text`, or "" if there is none.
  std::string_view special_at(std::string_view text, size_t start) const;

  // Returns the special tokens that decode to nothing, by id.
  const std::unordered_map<int64_t, std::string>& hidden_tokens() const { return hidden_tokens_; }

 private:
  Tokenizer tokenizer_;
  DecodingRule rule_;
  std::unordered_map<int64_t, std::string> hidden_tokens_;
  std::vector<std::string> special_texts_;
  TokenMatcher special_matcher_;  // values are indices into special_texts_
};

// Decodes a growing list of token ids piece by piece.
//
// However the ids are split, the pieces and `flush()` add up to `codec.decode(all ids)`. A piece
// has only whole characters, and at most 3 bytes are held back. The codec must outlive this and
// must not move.
class IncrementalText {
 public:
  // continues: whether the ids follow other text, so that a space at their start is kept.
  // SentencePiece puts a space before a text and strips it when decoding; after a raw prompt that
  // space separates the last word of the prompt from the first new one.
  explicit IncrementalText(const TextCodec& codec, bool continues = false);

  // Adds token ids and returns the text that they complete, which may be "".
  std::string push(const std::vector<int32_t>& ids);
  std::string push(int32_t id);

  // Ends the text. An unfinished character becomes U+FFFD.
  std::string flush();

  const TextCodec& codec() const { return *codec_; }

 private:
  void add(int32_t id, std::string& text);
  void strip(std::string& text, size_t start);

  const TextCodec* codec_;
  bool is_first_;  // whether the next token is the first, and the rule converts that differently
  size_t strip_count_;  // how many times the rule's `strip_text` is still stripped
  Utf8Decoder utf8_;
  std::string bytes_;  // of one token; a member to reuse its memory
};

}  // namespace bita
