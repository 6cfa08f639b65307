// Transformations of a text before it is split into tokens.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "deadline.h"
#include "expression.h"
#include "unicode_forms.h"

namespace bita {

// A text, or a piece of one, that is to be transformed.
struct RewriteInput {
  std::string_view text;
  bool is_start;  // whether it is the start of the whole prompt
  const Deadline& deadline;
};

// Appends the transformed text. Thread-safe, also for copies of one Rewrite.
using Rewrite = std::function<void(const RewriteInput& input, std::string& result)>;

Rewrite to_form(UnicodeForm form);
Rewrite to_lowercase();

// Replaces bytes by GPT-2's characters.
Rewrite to_byte_characters();

// Replaces each match by `content`.
Rewrite replacing(Expression expression, std::string content);

// Replaces one ASCII character, which needs no expression.
Rewrite replacing_character(char old, std::string content);

struct PrefixOptions {
  bool unless_there = false;   // leave a text alone that begins with the prefix
  bool only_at_start = false;  // leave later pieces of a prompt alone
};

// Puts `prefix` before every text that is not empty.
Rewrite prefixing(std::string prefix, PrefixOptions options);

// Strips white space from the ends.
Rewrite stripping(bool at_left, bool at_right);

// Returns whether a character is white space in Unicode.
bool is_white_space(uint32_t code_point);

// Returns the end of the white space at the start of `text`.
size_t leading_space(std::string_view text);

// Returns the start of the white space at the end of `text`.
size_t trailing_space(std::string_view text);

// The rewrites of a normalizer, applied in order.
class Normalizer {
 public:
  std::vector<Rewrite> rewrites;
  bool keeps_start = true;  // whether the start of a text remains its start

  // Returns the normalized text. Throws TooSlow at the deadline, and if the text grows too much.
  std::string apply(std::string_view text, const Deadline& deadline) const;
};

// Throws TooSlow if a text has grown from `before` to `after` bytes beyond what real rules do.
void check_growth(size_t before, size_t after);

}  // namespace bita
