// The stages of encoding a text.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "../base/json.h"
#include "added_tokens.h"
#include "bpe_model.h"
#include "rewrites.h"
#include "split_text.h"
#include "tokenizer.h"

namespace bita {

// A step of splitting a text into words: a split or a rewrite.
struct WordStep {
  std::optional<Split> split;
  Rewrite rewrite;
};

// The ids added around a text. The text itself may occur several times.
struct TextTemplate {
  static constexpr int32_t kText = -1;
  std::vector<int32_t> ids = {kText};
};

struct TokenizerParts {
  AddedTokens added_tokens;
  Normalizer normalizer;
  std::vector<WordStep> word_steps;
  BpeModel model;
  TextTemplate text_template;
  Json decoder;
  std::vector<SpecialToken> special_tokens;
  std::vector<std::string> expressions;  // regular expressions of the file, which may be slow
};

// Splits a prompt into added tokens and words. Throws TooSlow, and Fault(kPrompt) if added tokens
// overlap in the prompt.
SplitText words_of(const TokenizerParts& parts, std::string_view text, const Deadline& deadline);

}  // namespace bita
