#include "chat_pieces.h"

#include <algorithm>

#include "utf8.h"

namespace bita {

const std::array<std::string_view, kNumRoles> kRoleNames = {"system", "user", "assistant", "tool"};

bool is_space(uint32_t character) {
  return (character >= 0x09 && character <= 0x0D) || (character >= 0x1C && character <= 0x20) ||
         character == 0x85 || character == 0xA0 || character == 0x1680 ||
         (character >= 0x2000 && character <= 0x200A) || character == 0x2028 ||
         character == 0x2029 || character == 0x202F || character == 0x205F || character == 0x3000;
}

bool Taken::has(uint32_t character) const {
  if (takes_spaces) return is_space(character);
  return std::find(characters.begin(), characters.end(), character) != characters.end();
}

std::string_view Strip::of(std::string_view text) const {
  size_t begin = 0, end = text.size();
  while (begin < end && left.has(code_point_at(text, begin))) begin += utf8_length(text[begin]);
  while (begin < end) {
    size_t last = end - 1;
    while ((static_cast<unsigned char>(text[last]) & 0xC0) == 0x80) --last;
    if (!right.has(code_point_at(text, last))) break;
    end = last;
  }
  return text.substr(begin, end - begin);
}

}  // namespace bita
