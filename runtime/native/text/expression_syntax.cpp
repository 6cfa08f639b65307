#include "expression_syntax.h"

#include <algorithm>
#include <stdexcept>

#include "character_classes.h"
#include "character_set.h"
#include "pattern_cursor.h"

namespace bita {

namespace {

constexpr size_t kMaxPattern = 4096;  // bytes; patterns of models have a few hundred
constexpr int kMaxDepth = 50;         // of groups
constexpr std::string_view kQuantifiers = "*+?{";

// Returns an expression for \b, or for \B if negated.
std::string boundary(bool negated) {
  const std::string word = "[" + word_members(false) + "]";
  const std::string inside = "(?<=" + word + ")(?=" + word + ")";
  const std::string outside = "(?<!" + word + ")(?!" + word + ")";
  const std::string enters = "(?<!" + word + ")(?=" + word + ")";
  const std::string leaves = "(?<=" + word + ")(?!" + word + ")";
  return "(?:" + (negated ? inside + "|" + outside : enters + "|" + leaves) + ")";
}

// Checks the literal text under (?i). Oniguruma lets a character match two, such as the sharp s for
// "ss", and PCRE2 does not.
class CaselessText {
 public:
  void clear() { last_ = 0; }

  void add(uint32_t code_point) {
    static constexpr std::string_view kJoined[] = {"ss", "ff", "fi", "fl", "st"};
    if (code_point >= 0x80) refuse_pattern("(?i) with letters beyond ASCII");
    const char c = static_cast<char>(code_point);
    const char lower = c >= 'A' && c <= 'Z' ? static_cast<char>(c | 0x20) : c;
    for (const std::string_view joined : kJoined) {
      if (joined[0] == last_ && joined[1] == lower) {
        refuse_pattern("(?i) with " + std::string(joined));
      }
    }
    last_ = lower;
  }

 private:
  char last_ = 0;
};

// Translates a pattern from front to back, part by part.
class Translator {
 public:
  explicit Translator(std::string_view pattern) : cursor_(pattern) {}

  std::string translate() {
    alternatives(0, false);
    if (!cursor_.at_end()) refuse_pattern(")");
    return std::move(written_);
  }

 private:
  // Translates up to the end or to a closing parenthesis.
  void alternatives(int depth, bool caseless) {
    if (depth > kMaxDepth) throw std::runtime_error("a regular expression is nested too deeply");
    if (cursor_.take("(?i)")) {  // applies until the end of the group
      written_ += "(?i)";
      caseless = true;
    }
    text_.clear();
    while (!cursor_.at_end() && cursor_.peek() != ')') {
      if (cursor_.take("|")) {
        written_ += '|';
        text_.clear();
      } else {
        term(depth, caseless);
      }
    }
    text_.clear();
  }

  // Translates a character, set, group or anchor with its quantifier.
  void term(int depth, bool caseless) {
    const size_t start = written_.size();
    if (cursor_.is_one_of(kQuantifiers)) refuse_pattern(cursor_.rest().substr(0, 1));
    if (anchor()) {
      text_.clear();
      if (cursor_.is_one_of(kQuantifiers)) refuse_pattern("a quantifier of an anchor");
      return;
    }
    if (cursor_.take("(")) {
      group(depth, caseless);
    } else if (cursor_.take("[")) {
      text_.clear();
      written_ += read_set(cursor_, caseless);
    } else if (cursor_.take(".")) {
      text_.clear();
      written_ += '.';
    } else {
      character(caseless);
    }
    quantifier(start);
  }

  bool anchor() {
    static constexpr std::string_view kSame[] = {"^", "$", "\\A", "\\z", "\\Z"};
    for (const std::string_view mark : kSame) {
      if (!cursor_.take(mark)) continue;
      written_ += mark;
      return true;
    }
    if (!cursor_.starts("\\b") && !cursor_.starts("\\B")) return false;
    written_ += boundary(cursor_.starts("\\B"));
    cursor_.skip(2);
    return true;
  }

  void group(int depth, bool caseless) {
    static constexpr std::string_view kSame[] = {"?:", "?=", "?!", "?<=", "?<!", "?>", "?i:"};
    text_.clear();
    std::string opening = "(?:";  // captures are not needed
    bool is_known = cursor_.peek() != '?' && cursor_.peek() != '*';
    for (const std::string_view known : kSame) {
      if (is_known || !cursor_.take(known)) continue;
      is_known = true;
      opening = "(" + std::string(known);
    }
    if (!is_known) refuse_pattern("(" + std::string(cursor_.rest().substr(0, 2)));
    written_ += opening;
    alternatives(depth + 1, caseless || opening == "(?i:");
    if (!cursor_.take(")")) refuse_pattern("( without )");
    written_ += ')';
  }

  // Translates a character, or a class after a backslash.
  void character(bool caseless) {
    CharacterSet set;
    std::optional<uint32_t> code_point;
    if (cursor_.take("\\")) {
      code_point = read_escape(cursor_, set, {caseless, false});
    } else {
      code_point = code_point_at(cursor_.character(), 0);
    }
    if (!code_point) {
      text_.clear();
      written_ += set.pattern(false);
      return;
    }
    if (caseless) text_.add(*code_point);
    written_ += escaped_character(*code_point);
  }

  // start: where the term begins in the translation.
  void quantifier(size_t start) {
    if (!cursor_.is_one_of(kQuantifiers)) return;
    text_.clear();
    const bool is_interval = cursor_.peek() == '{';
    std::string found = is_interval ? interval() : std::string(cursor_.character());
    if (cursor_.take("?")) {
      if (is_interval && found.find(',') == std::string::npos) refuse_pattern(found + "?");
      found += '?';
    } else if (cursor_.take("+")) {
      if (is_interval) {  // + repeats an interval; it makes the other quantifiers possessive
        written_ = written_.substr(0, start) + "(?:" + written_.substr(start) + found + ")";
        found.clear();
      }
      found += '+';
    }
    written_ += found;
    if (cursor_.is_one_of(kQuantifiers)) refuse_pattern("a quantifier after another one");
  }

  // Returns {n}, {n,}, {,n} or {n,m} in PCRE2's syntax.
  std::string interval() {
    const std::string found(cursor_.rest().substr(0, cursor_.rest().find('}') + 1));
    const size_t comma = std::min(found.find(','), found.size() - 1);
    const auto is_number = [](const std::string& digits) {
      return digits.size() <= 3 && digits.find_first_not_of("0123456789") == std::string::npos;
    };
    if (found.size() < 3) refuse_pattern("{");
    std::string low = found.substr(1, comma - 1);
    const std::string high = found.substr(comma);  // including the comma and brace
    const std::string limit = high.size() < 2 ? "" : high.substr(1, high.size() - 2);
    if (!is_number(low) || !is_number(limit) || (low.empty() && limit.empty())) {
      refuse_pattern(found.substr(0, 9));
    }
    cursor_.skip(found.size());
    if (low.empty()) low = "0";
    return "{" + low + high;
  }

  PatternCursor cursor_;
  std::string written_;
  CaselessText text_;
};

}  // namespace

std::string pcre2_pattern(std::string_view pattern) {
  if (pattern.size() > kMaxPattern) {
    throw std::runtime_error("a regular expression has over " + std::to_string(kMaxPattern) +
                             " bytes");
  }
  return Translator(pattern).translate();
}

}  // namespace bita
