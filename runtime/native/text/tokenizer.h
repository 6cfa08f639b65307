// Encoding of text according to a Hugging Face tokenizer.json.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "../base/json.h"

namespace bita {

struct TokenizerParts;  // the stages of encoding, in tokenizer_parts.h

// A special token of the file, with its literal text.
struct SpecialToken {
  int32_t id;
  std::string text;
};

// Encodes text to the same ids as the `tokenizers` package, without truncation and padding.
//
// BPE models are supported: byte-level as in GPT-2, Llama 3 and Qwen, or with byte fallback as in
// Llama 2, Mistral and Gemma. Files with other features are refused when they are read.
// All functions except `set_num_rows` are thread-safe.
class Tokenizer {
 public:
  // Reads the content of a tokenizer.json.
  //
  // Throws Fault(kEngine), which names the `subject` and ends with `fix`, if it is not a tokenizer
  // or has unsupported features; these are all listed at once.
  static Tokenizer parse(std::string_view json, const std::string& subject, const std::string& fix);

  Tokenizer(Tokenizer&& other) noexcept;
  Tokenizer& operator=(Tokenizer&& other) noexcept;
  ~Tokenizer();

  // Sets the number of rows of the model's embedding table. `encode` refuses text with ids beyond
  // it.
  void set_num_rows(int64_t num_rows);

  // Encodes UTF-8 `text`. Special tokens written out in it are encoded as such.
  //
  // add_special_tokens: whether to add the tokens that the tokenizer puts around a text, such as
  // BOS.
  //     Pass true for raw text, false for a rendered chat template, which contains them.
  // Throws Fault(kPrompt) if the text is not UTF-8, has a token that the model lacks, or makes a
  // regular expression of the file take too long.
  std::vector<int32_t> encode(std::string_view text, bool add_special_tokens) const;

  // Returns the size of the vocabulary, including added tokens.
  size_t num_tokens() const;

  // Returns the id of a token by its exact string, such as "<|im_end|>"; none if it is unknown.
  std::optional<int32_t> token_id(std::string_view token) const;

  // Returns the string of a token, valid as long as the tokenizer; none for unknown ids.
  std::optional<std::string_view> token(int64_t id) const;

  // Returns the special tokens in the order of their ids.
  const std::vector<SpecialToken>& special_tokens() const;

  // Returns the lowest id such that it and all higher ids have no string.
  int64_t id_limit() const;

  // Returns the "decoder" of the file, null if there is none.
  const Json& decoder() const;

 private:
  explicit Tokenizer(std::unique_ptr<TokenizerParts> parts);

  std::unique_ptr<TokenizerParts> parts_;
  int64_t num_rows_ = -1;
};

}  // namespace bita
