// UTF-8 characters.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace bita {

// Returns the position of the first byte that is not UTF-8, or the size of the text. Surrogates,
// overlong forms and values above U+10FFFF are not UTF-8.
size_t utf8_error(std::string_view text);

inline bool is_utf8(std::string_view text) { return utf8_error(text) == text.size(); }

// Returns the number of bytes of the character that starts with `lead`, in valid UTF-8.
inline size_t utf8_length(char lead) {
  const auto byte = static_cast<unsigned char>(lead);
  if (byte < 0x80) return 1;
  if (byte < 0xE0) return 2;
  return byte < 0xF0 ? 3 : 4;
}

// Returns the character that starts at `at` of a text, which must be UTF-8.
uint32_t code_point_at(std::string_view text, size_t at);

void append_utf8(uint32_t code_point, std::string& text);

// Returns the number of characters of a text, which must be UTF-8.
size_t num_characters(std::string_view text);

}  // namespace bita
