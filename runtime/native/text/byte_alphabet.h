// GPT-2's alphabet, which maps every byte to a printable character.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace bita {

// Appends the characters of `bytes`: printable Latin-1 bytes map to themselves, the others to the
// characters from U+0100. A byte becomes at most two bytes of UTF-8.
void append_byte_characters(std::string_view bytes, std::string& text);

// Appends the bytes that the characters of a token encode. If a character encodes none, as in an
// added token, the token itself is appended.
void append_bytes_of(std::string_view token, std::string& bytes);

}  // namespace bita
