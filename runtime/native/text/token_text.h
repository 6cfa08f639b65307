// Text in and out: prompts to token ids, and committed token ids to text, a few at a time.
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

// A tokenizer and the rule by which its tokens become text.
//
// Special tokens and ids outside the vocabulary (a padded embedding table has some) decode to
// nothing. Bytes that are not UTF-8 become U+FFFD each on its own.
// All functions may be called by several threads at once.
class TextCodec {
 public:
  // Throws Fault(kEngine) if the tokenizer's decoder is of an unsupported kind.
  explicit TextCodec(Tokenizer tokenizer);

  // Reads a tokenizer.json as `Tokenizer::parse` does; all faults name the `subject`.
  // num_rows: of the model's embedding table; none if it is not known.
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

  // Text of `ids`: the pieces of an IncrementalText joined.
  std::string decode(const std::vector<int32_t>& ids) const;

  // Whether `text` starts with a special token.
  bool starts_special(std::string_view text) const;

  // The string of a token that is text; none for special tokens and unknown ids.
  std::optional<std::string_view> shown_token(int64_t id) const;

  // The string of a special token that decodes to nothing; none for other ids. A special token
  // whose string was normalized is shown.
  const std::string* hidden_token(int64_t id) const;

  // The special token that begins at `start` of `text`, the longest one; "" if there is none.
  std::string_view special_at(std::string_view text, size_t start) const;

  // The special tokens that decode to nothing, by id.
  const std::unordered_map<int64_t, std::string>& hidden_tokens() const { return hidden_tokens_; }

 private:
  Tokenizer tokenizer_;
  DecodingRule rule_;
  std::unordered_map<int64_t, std::string> hidden_tokens_;
  std::vector<std::string> special_texts_;
  TokenMatcher special_matcher_;  // the index of a special text
};

// The text of a growing list of token ids, given out piece by piece.
//
// However the ids are split, the pieces and `flush()` joined are `codec.decode(all ids)`; a piece
// never holds a part of a character, and at most 3 bytes are held back. The codec must stay where
// it is as long as this lives.
class IncrementalText {
 public:
  // continues: the ids follow other text, so a space at their start stays. SentencePiece writes
  // one space before a text and takes it off when decoding; after a raw prompt that space
  // separates the last word of the prompt from the first new one.
  explicit IncrementalText(const TextCodec& codec, bool continues = false);

  // Adds token ids; returns the text that they complete, "" if there is none yet.
  std::string push(const std::vector<int32_t>& ids);
  std::string push(int32_t id);

  // Ends the text: what is left of an unfinished character comes out as U+FFFD.
  std::string flush();

  const TextCodec& codec() const { return *codec_; }

 private:
  void add(int32_t id, std::string& text);
  void strip(std::string& text, size_t start);

  const TextCodec* codec_;
  bool is_first_;       // no token has been shown, and the first one is written in its own way
  size_t strip_count_;  // how often the rule's `strip_text` is still taken off
  Utf8Decoder utf8_;
  std::string bytes_;  // of one token, kept for its memory
};

}  // namespace bita
