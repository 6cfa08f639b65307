#include "tokenizer_parts.h"

namespace bita {

SplitText words_of(const TokenizerParts& parts, std::string_view text, const Deadline& deadline) {
  SplitText words = parts.added_tokens.extract(text, parts.normalizer, deadline);
  for (const WordStep& step : parts.word_steps) {
    if (step.split) {
      split_pieces(words, *step.split, deadline);
    } else {
      rewrite_pieces(words, step.rewrite, deadline);
    }
  }
  return words;
}

}  // namespace bita
