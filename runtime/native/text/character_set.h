// Character sets of regular expressions, translated from Oniguruma's syntax to PCRE2's.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "pattern_cursor.h"

namespace bita {

// A union of characters and complements. PCRE2 has no syntax for the complement of several ranges
// inside [ ], so complements are kept apart.
class CharacterSet {
 public:
  // members: in PCRE2's syntax between [ and ].
  void add(const std::string& members) { members_ += members; }
  void add_complement(const std::string& members) { complements_.push_back(members); }
  void add(uint32_t first, uint32_t last);

  // Returns an expression that matches one character in the set, or not in it if `negated`.
  std::string pattern(bool negated) const;

 private:
  std::string members_;
  std::vector<std::string> complements_;
};

// The context of a class in an expression.
struct EscapePlace {
  bool caseless;  // under (?i), where the two libraries' classes of letters differ
  bool in_set;    // between [ and ], where Oniguruma's \w has fewer characters
};

// Returns the PCRE2 escape of a character, valid inside and outside of [ ].
std::string escaped_character(uint32_t code_point);

// Reads an escape after its backslash. Returns a character, or adds a class to `set` and returns
// none. Throws std::runtime_error for an unsupported escape.
std::optional<uint32_t> read_escape(PatternCursor& cursor, CharacterSet& set, EscapePlace place);

// Reads a set after its [, up to and including the ], and returns an expression for it.
std::string read_set(PatternCursor& cursor, bool caseless);

}  // namespace bita
