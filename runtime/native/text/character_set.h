// Sets of characters in a regular expression: read as Oniguruma does, written for PCRE2.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "pattern_cursor.h"

namespace bita {

// The union of characters and of complements. PCRE2 cannot write the complement of several ranges
// inside of [ ], so each stands for itself.
class CharacterSet {
 public:
  // members: as they stand between [ and ].
  void add(const std::string& members) { members_ += members; }
  void add_complement(const std::string& members) { complements_.push_back(members); }
  void add(uint32_t first, uint32_t last);

  // An expression for one character that is in the set, or that is not if `negated`.
  std::string pattern(bool negated) const;

 private:
  std::string members_;
  std::vector<std::string> complements_;
};

// Where a class stands in an expression.
struct EscapePlace {
  bool caseless;  // case does not matter, where classes of letters differ between the two
  bool in_set;    // between [ and ], where Oniguruma's \w has fewer characters
};

// A character as PCRE2 writes it anywhere.
std::string escaped_character(uint32_t code_point);

// Reads what follows a backslash: a character, or a class that is added to `set`.
// Throws std::runtime_error for what is not supported.
std::optional<uint32_t> read_escape(PatternCursor& cursor, CharacterSet& set, EscapePlace place);

// Reads what follows a [, up to its ]; returns an expression for it.
std::string read_set(PatternCursor& cursor, bool caseless);

}  // namespace bita
