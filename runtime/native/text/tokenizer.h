// Text to token ids, as a Hugging Face tokenizer.json says.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "../base/json.h"

namespace bita {

struct TokenizerParts;  // the stages that a text passes, in tokenizer_parts.h

// A special token of the file, as it is written in text.
struct SpecialToken {
  int32_t id;
  std::string text;
};

// Turns text into the ids that the `tokenizers` package gives, without truncation and padding.
//
// Supported are BPE models, byte-level as in GPT-2, Llama 3 and Qwen or with byte fallback as in
// Llama 2, Mistral and Gemma. A file that needs something else is refused when it is read.
// All functions but `set_num_rows` may be called by several threads at once.
class Tokenizer {
 public:
  // Reads the content of a tokenizer.json.
  //
  // Throws Fault(kEngine), which names the `subject` and ends with `fix`, for what is not a
  // tokenizer or needs what is not supported; all that is not supported is listed at once.
  static Tokenizer parse(std::string_view json, const std::string& subject, const std::string& fix);

  Tokenizer(Tokenizer&& other) noexcept;
  Tokenizer& operator=(Tokenizer&& other) noexcept;
  ~Tokenizer();

  // The rows of the model's embedding table: `encode` refuses a text that has a later token.
  void set_num_rows(int64_t num_rows);

  // Token ids of UTF-8 `text`. Special tokens written out in it count as such.
  //
  // add_special_tokens: put around the text what the tokenizer adds by itself, such as BOS: true
  // for raw text, false for a rendered chat template, which writes them itself.
  // Throws Fault(kPrompt) for text that is not UTF-8, that has a token which the model does not
  // have, or that a regular expression of the file takes too long for.
  std::vector<int32_t> encode(std::string_view text, bool add_special_tokens) const;

  // Size of the vocabulary, added tokens included.
  size_t num_tokens() const;

  // Id of a token given by its exact string, such as "<|im_end|>"; none if there is none.
  std::optional<int32_t> token_id(std::string_view token) const;

  // The string of a token, valid as long as the tokenizer; none for unknown ids.
  std::optional<std::string_view> token(int64_t id) const;

  // The special tokens in the order of their ids.
  const std::vector<SpecialToken>& special_tokens() const;

  // Ids at and above this one have no string.
  int64_t id_limit() const;

  // The "decoder" of the file, null if there is none.
  const Json& decoder() const;

 private:
  explicit Tokenizer(std::unique_ptr<TokenizerParts> parts);

  std::unique_ptr<TokenizerParts> parts_;
  int64_t num_rows_ = -1;
};

}  // namespace bita
