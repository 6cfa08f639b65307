#include "byte_alphabet.h"

#include <array>

#include "utf8.h"

namespace bita {

namespace {

constexpr uint32_t kNumCharacters = 0x100 + 68;  // 68 bytes are not printable

struct Alphabet {
  std::array<uint16_t, 256> character_of{};
  std::array<int16_t, kNumCharacters> byte_of{};
};

bool is_printable(int byte) {
  return (byte >= 0x21 && byte < 0x7F) || (byte >= 0xA1 && byte < 0xAD) || byte >= 0xAE;
}

Alphabet make_alphabet() {
  Alphabet alphabet;
  alphabet.byte_of.fill(-1);
  uint16_t next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const uint16_t character = is_printable(byte) ? static_cast<uint16_t>(byte) : next++;
    alphabet.character_of[static_cast<size_t>(byte)] = character;
    alphabet.byte_of[character] = static_cast<int16_t>(byte);
  }
  return alphabet;
}

const Alphabet& alphabet() {
  static const Alphabet kAlphabet = make_alphabet();
  return kAlphabet;
}

}  // namespace

void append_byte_characters(std::string_view bytes, std::string& text) {
  const auto& character_of = alphabet().character_of;
  for (const char byte : bytes) append_utf8(character_of[static_cast<unsigned char>(byte)], text);
}

void append_bytes_of(std::string_view token, std::string& bytes) {
  const auto& byte_of = alphabet().byte_of;
  const size_t before = bytes.size();
  for (size_t at = 0; at < token.size(); at += utf8_length(token[at])) {
    const uint32_t character = code_point_at(token, at);
    if (character >= kNumCharacters || byte_of[character] < 0) {
      bytes.resize(before);
      bytes.append(token);
      return;
    }
    bytes.push_back(static_cast<char>(byte_of[character]));
  }
}

}  // namespace bita
