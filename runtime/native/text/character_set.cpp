#include "character_set.h"

#include <array>
#include <cstdio>

#include "character_classes.h"

namespace bita {

namespace {

// Reads the digits after \x or \u.
uint32_t hexadecimal(PatternCursor& cursor, bool has_four) {
  const bool has_braces = !has_four && cursor.take("{");
  const size_t max_digits = has_four ? 4 : has_braces ? 6 : 2;
  uint32_t value = 0;
  size_t num_digits = 0;
  for (; num_digits < max_digits && cursor.is_one_of("0123456789abcdefABCDEF"); ++num_digits) {
    const char c = cursor.peek();
    value = value * 16 + static_cast<uint32_t>(c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
    cursor.skip(1);
  }
  const bool is_whole = has_braces ? num_digits > 0 && cursor.take("}") : num_digits == max_digits;
  const bool is_byte = !has_four && !has_braces && value > 0x7F;  // not a character in Oniguruma
  if (!is_whole || is_byte || value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) {
    refuse_pattern("a number of a character");
  }
  return value;
}

// Reads the property after \p or \P.
void read_property(PatternCursor& cursor, CharacterSet& set, bool negated, bool caseless) {
  const size_t end = cursor.rest().find('}');
  if (cursor.peek() != '{' || end == std::string_view::npos) {
    refuse_pattern("\\p without a name in { }");
  }
  std::string_view name = cursor.rest().substr(1, end - 1);
  cursor.skip(end + 1);
  if (!name.empty() && name[0] == '^') {
    negated = !negated;
    name.remove_prefix(1);
  }
  const std::string members = property_members(name);
  if (members.empty() || caseless) {
    refuse_pattern("\\p{" + std::string(name) + "}" + (caseless ? " with (?i)" : ""));
  }
  if (negated) {
    set.add_complement(members);
  } else {
    set.add(members);
  }
}

void add_class(CharacterSet& set, char mark, EscapePlace place) {
  std::string members;
  const char lower = static_cast<char>(mark | 0x20);
  if (lower == 's') members = space_members();
  if (lower == 'd') members = property_members("Nd");
  if (lower == 'w' && !place.caseless) members = word_members(place.in_set);
  if (lower == 'h' && !place.caseless) members = hex_members();
  if (members.empty()) {
    refuse_pattern(std::string("\\") + mark + (place.caseless ? " with (?i)" : ""));
  }
  if (mark == lower) {
    set.add(members);
  } else {
    set.add_complement(members);
  }
}

std::optional<uint32_t> set_character(PatternCursor& cursor, CharacterSet& set, bool caseless) {
  if (!cursor.take("\\")) return code_point_at(cursor.character(), 0);
  if (cursor.take("b")) return 0x08;
  return read_escape(cursor, set, {caseless, true});
}

// Returns whether a - comes next that is not the last member.
bool has_dash(const PatternCursor& cursor) { return cursor.peek() == '-' && !cursor.starts("-]"); }

// Reads a character, a range or a class inside [ ].
void read_member(PatternCursor& cursor, CharacterSet& set, bool caseless, bool is_first) {
  const bool is_dash = cursor.peek() == '-';
  if (has_dash(cursor) && !is_first) refuse_pattern("- inside of [ ]");
  const std::optional<uint32_t> first = set_character(cursor, set, caseless);
  if (!first) {
    if (has_dash(cursor)) refuse_pattern("- after a class in [ ]");
    return;
  }
  uint32_t last = *first;
  if (has_dash(cursor)) {
    cursor.skip(1);
    if (is_dash || cursor.is_one_of("[-&")) refuse_pattern("- inside of [ ]");
    const std::optional<uint32_t> found = set_character(cursor, set, caseless);
    if (!found || *found < last) refuse_pattern("a range in [ ]");
    last = *found;
  }
  if (caseless && last >= 0x80) refuse_pattern("(?i) with letters beyond ASCII");
  set.add(*first, last);
}

}  // namespace

void CharacterSet::add(uint32_t first, uint32_t last) {
  members_ += escaped_character(first);
  if (last != first) members_ += "-" + escaped_character(last);
}

std::string CharacterSet::pattern(bool negated) const {
  if (complements_.empty()) return (negated ? "[^" : "[") + members_ + "]";
  if (complements_.size() == 1 && members_.empty()) {
    return (negated ? "[" : "[^") + complements_[0] + "]";
  }
  std::string all = "(?:";
  for (const std::string& complement : complements_) {
    all += negated ? "(?=[" + complement + "])" : "[^" + complement + "]|";
  }
  if (members_.empty()) {
    all += negated ? "(?s:.)" : "(?!)";
  } else {
    all += (negated ? "[^" : "[") + members_ + "]";
  }
  return all + ")";
}

std::string escaped_character(uint32_t code_point) {
  std::array<char, 16> text{};
  std::snprintf(text.data(), text.size(), "\\x{%x}", code_point);
  return text.data();
}

std::optional<uint32_t> read_escape(PatternCursor& cursor, CharacterSet& set, EscapePlace place) {
  static constexpr std::string_view kNames = "tnrfvae";
  static constexpr std::string_view kMeant = "\t\n\r\f\v\a\x1b";
  const std::string_view character = cursor.character();
  const char mark = character[0];
  const size_t found = kNames.find(mark);
  if (found != std::string_view::npos) return static_cast<uint32_t>(kMeant[found]);
  if (mark == 'x' || mark == 'u') return hexadecimal(cursor, mark == 'u');
  if (mark == 'p' || mark == 'P') {
    read_property(cursor, set, mark == 'P', place.caseless);
    return std::nullopt;
  }
  const char lower = static_cast<char>(mark | 0x20);
  if ((lower < 'a' || lower > 'z') && (mark < '0' || mark > '9')) {
    return code_point_at(character, 0);
  }
  add_class(set, mark, place);
  return std::nullopt;
}

std::string read_set(PatternCursor& cursor, bool caseless) {
  CharacterSet set;
  const bool negated = cursor.take("^");
  if (negated && caseless) refuse_pattern("[^ with (?i)");
  bool is_first = true;
  while (is_first || !cursor.take("]")) {
    if (cursor.at_end()) refuse_pattern("[ without ]");
    if (cursor.starts("&&") || cursor.peek() == '[' || cursor.peek() == ']') {
      refuse_pattern(cursor.rest().substr(0, 2));
    }
    read_member(cursor, set, caseless, is_first);
    is_first = false;
  }
  return set.pattern(negated);
}

}  // namespace bita
