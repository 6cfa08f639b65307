#include "unicode_forms.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <tuple>
#include <vector>

#include "utf8.h"

namespace bita {

namespace {

constexpr utf8proc_ssize_t kMaxParts = 32;  // per character; Unicode has up to 18

using Mark = std::tuple<int, size_t, utf8proc_int32_t>;  // order, place, character

struct Range {
  uint32_t first;
  uint32_t last;
};

// Characters after Unicode 9 that utf8proc (2.7 to 2.10) decomposes, orders or composes: measured
// over all code points of Unicode 15, and whole blocks of Unicode 16.
constexpr Range kUnknownCharacters[] = {
    {0x7FD, 0x7FD},     {0x897, 0x89F},     {0x8CA, 0x8D3},     {0x9FE, 0x9FE},
    {0xC3C, 0xC3C},     {0xD3B, 0xD3C},     {0xEBA, 0xEBA},     {0x1715, 0x1715},
    {0x1ABF, 0x1ACE},   {0x1DF6, 0x1DFA},   {0x32FF, 0x32FF},   {0xA7F1, 0xA7F4},
    {0xA82C, 0xA82C},   {0xAB69, 0xAB69},   {0x105C0, 0x105F3}, {0x10781, 0x107BA},
    {0x10D24, 0x10D27}, {0x10D69, 0x10D6D}, {0x10EAB, 0x10EAC}, {0x10EFA, 0x10EFF},
    {0x10F46, 0x10F50}, {0x10F82, 0x10F85}, {0x11070, 0x11070}, {0x1133B, 0x1133B},
    {0x11380, 0x113E2}, {0x1145E, 0x1145E}, {0x11839, 0x1183A}, {0x11930, 0x11943},
    {0x119E0, 0x119E0}, {0x11A34, 0x11A34}, {0x11A47, 0x11A47}, {0x11A99, 0x11A99},
    {0x11D42, 0x11D45}, {0x11D97, 0x11D97}, {0x11F41, 0x11F42}, {0x16100, 0x16139},
    {0x16D40, 0x16D79}, {0x16FF0, 0x16FF1}, {0x1CCD6, 0x1CCF9}, {0x1E030, 0x1E08F},
    {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2AE}, {0x1E2EC, 0x1E2EF}, {0x1E4EC, 0x1E4EF},
    {0x1E5EE, 0x1E5EF}, {0x1F16C, 0x1F16C}, {0x1FBF0, 0x1FBF9}};

bool is_unknown(uint32_t code_point) {
  if (code_point < kUnknownCharacters[0].first) return false;
  const Range* after =
      std::upper_bound(std::begin(kUnknownCharacters), std::end(kUnknownCharacters), code_point,
                       [](uint32_t value, const Range& range) { return value < range.first; });
  return code_point <= std::prev(after)->last;
}

bool composes(UnicodeForm form) { return form == UnicodeForm::kNfc || form == UnicodeForm::kNfkc; }

utf8proc_option_t decomposition_of(UnicodeForm form) {
  const bool is_compatible = form == UnicodeForm::kNfkc || form == UnicodeForm::kNfkd;
  return static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE |
                                        (is_compatible ? UTF8PROC_COMPAT : 0));
}

void append_decomposed(std::string_view text, utf8proc_option_t options,
                       std::vector<utf8proc_int32_t>& characters) {
  std::array<utf8proc_int32_t, kMaxParts> parts{};
  int boundary = UTF8PROC_BOUNDCLASS_START;
  for (size_t at = 0; at < text.size(); at += utf8_length(text[at])) {
    const auto character = static_cast<utf8proc_int32_t>(code_point_at(text, at));
    const utf8proc_ssize_t size =
        utf8proc_decompose_char(character, parts.data(), kMaxParts, options, &boundary);
    characters.insert(characters.end(), parts.begin(), parts.begin() + size);
  }
}

int order_of(utf8proc_int32_t character) {
  return utf8proc_get_property(character)->combining_class;
}

// Sorts each run of marks by order. utf8proc's own function takes n^2 steps for n marks.
void sort_marks(std::vector<utf8proc_int32_t>& characters) {
  const auto is_mark = [](utf8proc_int32_t character) { return order_of(character) != 0; };
  std::vector<Mark> marks;
  for (auto at = characters.begin(); at != characters.end();) {
    const auto start = std::find_if(at, characters.end(), is_mark);
    at = std::find_if_not(start, characters.end(), is_mark);
    if (at - start < 2) continue;
    marks.clear();
    for (auto mark = start; mark != at; ++mark)
      marks.push_back({order_of(*mark), marks.size(), *mark});
    std::sort(marks.begin(), marks.end());
    std::transform(marks.begin(), marks.end(), start,
                   [](const Mark& mark) { return std::get<2>(mark); });
  }
}

// Appends the normal form of a run of known characters.
void append_known(std::string_view text, UnicodeForm form, std::string& result) {
  if (text.empty()) return;
  std::vector<utf8proc_int32_t> characters;
  characters.reserve(text.size());
  append_decomposed(text, decomposition_of(form), characters);
  sort_marks(characters);
  if (composes(form)) {
    const utf8proc_ssize_t size = utf8proc_normalize_utf32(
        characters.data(), static_cast<utf8proc_ssize_t>(characters.size()),
        static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    characters.resize(static_cast<size_t>(size));
  }
  for (const utf8proc_int32_t character : characters) {
    append_utf8(static_cast<uint32_t>(character), result);
  }
}

bool is_ascii(std::string_view text) {
  return std::none_of(text.begin(), text.end(), [](char c) { return (c & 0x80) != 0; });
}

// Returns the lower case of a character newer than utf8proc's Unicode, or 0 if it has none.
uint32_t newer_lowercase(uint32_t code_point) {
  if (code_point >= 0x10D50 && code_point <= 0x10D65) return code_point + 0x20;
  if (code_point >= 0x16EA0 && code_point <= 0x16EB8) return code_point + 0x1B;
  switch (code_point) {
    case 0x1C89:
    case 0xA7CC:
    case 0xA7CE:
    case 0xA7D2:
    case 0xA7D4:
    case 0xA7DA:
      return code_point + 1;
    case 0xA7CB:
      return 0x264;
    case 0xA7DC:
      return 0x19B;
    default:
      return 0;
  }
}

}  // namespace

void append_in_form(std::string_view text, UnicodeForm form, std::string& result) {
  if (is_ascii(text)) {
    result.append(text);
    return;
  }
  size_t run = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t length = utf8_length(text[at]);
    if (length > 1 && is_unknown(code_point_at(text, at))) {
      append_known(text.substr(run, at - run), form, result);
      result.append(text.substr(at, length));
      run = at + length;
    }
    at += length;
  }
  append_known(text.substr(run), form, result);
}

void append_lowercase(std::string_view text, std::string& result) {
  for (size_t at = 0; at < text.size(); at += utf8_length(text[at])) {
    const uint32_t code_point = code_point_at(text, at);
    if (code_point == 0x130) {  // capital I with a dot, whose lower case is two characters
      result.append("i\xCC\x87");
    } else if (const uint32_t newer = newer_lowercase(code_point)) {
      append_utf8(newer, result);
    } else {
      append_utf8(
          static_cast<uint32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(code_point))),
          result);
    }
  }
}

}  // namespace bita
