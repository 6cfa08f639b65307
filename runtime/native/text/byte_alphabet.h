// GPT-2's alphabet: every byte as a printable character.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace bita {

// Appends the characters that stand for `bytes`: printable Latin-1 bytes stand for themselves, the
// others for U+0100 on. A byte becomes at most two.
void append_byte_characters(std::string_view bytes, std::string& text);

// Appends the bytes that the characters of a token stand for; if one of them stands for none, as
// in an added token, the token as it is written.
void append_bytes_of(std::string_view token, std::string& bytes);

}  // namespace bita
