// Tokens that are found in a text before it is cut into words.
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
  bool single_word = false;  // not next to a letter
  bool lstrip = false;       // it takes the white space before it
  bool rstrip = false;       // it takes the white space after it
  bool normalized = false;   // it is looked for in the normalized text
  bool special = false;
  int32_t id = -1;
  std::string shown;  // the content, normalized for a normalized token
};

// Immutable after `prepare`: several threads may use one.
class AddedTokens {
 public:
  // To be called in the order of the file; `shown` and the id are set, and neither text is empty.
  void add(AddedToken token);
  void prepare();

  const std::vector<AddedToken>& all() const { return tokens_; }

  // The token of an id, or nullptr.
  const AddedToken* with_id(int64_t id) const;

  // The id of a token by its content, as it is written in the file.
  std::optional<int32_t> id(const std::string& content) const;

  // Cuts a prompt into tokens and normalized text.
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
  TokenMatcher plain_;       // finds those that are not normalized
  TokenMatcher normalized_;  // finds the others
  std::optional<Expression> word_;
};

}  // namespace bita
