// Ways to write a text differently before it is cut into tokens.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "deadline.h"
#include "expression.h"
#include "unicode_forms.h"

namespace bita {

// A text on its way to tokens.
struct RewriteInput {
  std::string_view text;
  bool is_start;  // it begins where the whole prompt begins
  const Deadline& deadline;
};

// Appends the text as it is to be. Copies of one may be called by several threads at once.
using Rewrite = std::function<void(const RewriteInput& input, std::string& result)>;

Rewrite to_form(UnicodeForm form);
Rewrite to_lowercase();

// GPT-2's characters for bytes.
Rewrite to_byte_characters();

// content: instead of each match.
Rewrite replacing(Expression expression, std::string content);

// The same for one ASCII character, which needs no expression.
Rewrite replacing_character(char old, std::string content);

struct PrefixOptions {
  bool unless_there = false;   // not before a text that begins with it
  bool only_at_start = false;  // not before later pieces of a prompt
};

// Writes `prefix` before every text that is not empty.
Rewrite prefixing(std::string prefix, PrefixOptions options);

// Takes white space off the ends.
Rewrite stripping(bool at_left, bool at_right);

// Whether Unicode counts a character as white space.
bool is_white_space(uint32_t code_point);

// Where the white space that `text` begins with ends.
size_t leading_space(std::string_view text);

// Where the white space that `text` ends with begins.
size_t trailing_space(std::string_view text);

// The rewrites of a normalizer in their order.
class Normalizer {
 public:
  std::vector<Rewrite> rewrites;
  bool keeps_start = true;  // what a text begins with is still its beginning afterwards

  // Throws TooSlow at the deadline and if the text grows too much.
  std::string apply(std::string_view text, const Deadline& deadline) const;
};

// Throws TooSlow if a text of `before` bytes was made so long that something must be wrong.
void check_growth(size_t before, size_t after);

}  // namespace bita
