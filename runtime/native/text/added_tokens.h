// Tokens that are searched for in a text before it is split into words.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "expression.h"
#include "rewrites.h"
#include "split_text.h"
#include "token_matcher.h"

namespace bita {

struct AddedToken {
  std::string content;
  bool single_word = false;  // matches only between non-word characters
  bool lstrip = false;       // consumes the white space before it
  bool rstrip = false;       // consumes the white space after it
  bool normalized = false;   // searched for in the normalized text
  bool special = false;
  int32_t id = -1;
  std::string shown;  // the content, normalized if `normalized`
};

// The added tokens of a tokenizer. Immutable and thread-safe after `prepare`.
class AddedTokens {
 public:
  // Adds a token, in the order of the file. `id` must be set, `content` and `shown` not empty.
  void add(AddedToken token);
  void prepare();

  const std::vector<AddedToken>& all() const { return tokens_; }

  // Returns the token of an id, or nullptr.
  const AddedToken* with_id(int64_t id) const;

  // Returns the id of a token by its content as written in the file.
  std::optional<int32_t> id(const std::string& content) const;

  // Splits a prompt into added tokens and normalized text.
  SplitText extract(std::string_view text, const Normalizer& normalizer,
                    const Deadline& deadline) const;

 private:
  std::vector<Piece> find(const TokenMatcher& matcher, std::string_view text,
                          const Deadline& deadline) const;
  bool stands_alone(std::string_view text, size_t start, size_t end,
                    const Deadline& deadline) const;

  std::vector<AddedToken> tokens_;
  std::unordered_map<std::string, int32_t> ids_;
  std::unordered_map<int64_t, size_t> index_of_id_;
  TokenMatcher plain_;       // finds tokens that are not normalized
  TokenMatcher normalized_;  // finds normalized tokens
  std::optional<Expression> word_;
};

}  // namespace bita
