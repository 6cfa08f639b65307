#include "utf8_decoder.h"

#include <algorithm>

#include "utf8.h"

namespace bita {

namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

}  // namespace

void Utf8Decoder::push(std::string_view bytes, std::string& text) {
  if (num_held_ == 0) {
    const size_t valid = utf8_error(bytes);
    text.append(bytes.substr(0, valid));
    bytes.remove_prefix(valid);
  }
  for (const char byte : bytes) add(static_cast<unsigned char>(byte), text);
}

void Utf8Decoder::flush(std::string& text) {
  const size_t count = is_surrogate() ? num_held_ : std::min<size_t>(num_held_, 1);
  for (size_t i = 0; i < count; ++i) text.append(kReplacement);
  num_held_ = 0;
}

void Utf8Decoder::add(unsigned char byte, std::string& text) {
  if (num_held_ > 0 && !continues(byte)) flush(text);
  if (num_held_ == 0) {
    if (byte < 0x80) {
      text.push_back(static_cast<char>(byte));
      return;
    }
    if (byte < 0xC2 || byte > 0xF4) {
      text.append(kReplacement);
      return;
    }
    length_ = utf8_length(static_cast<char>(byte));
  }
  held_[num_held_++] = static_cast<char>(byte);
  if (num_held_ < length_) return;
  if (is_surrogate()) return flush(text);
  text.append(held_, num_held_);
  num_held_ = 0;
}

// Returns whether `byte` can continue the character that is held back.
bool Utf8Decoder::continues(unsigned char byte) const {
  if ((byte & 0xC0) != 0x80) return false;
  if (num_held_ > 1) return true;
  const auto lead = static_cast<unsigned char>(held_[0]);
  if (lead == 0xE0) return byte >= 0xA0;
  if (lead == 0xF0) return byte >= 0x90;
  if (lead == 0xF4) return byte <= 0x8F;
  return true;
}

bool Utf8Decoder::is_surrogate() const {
  return num_held_ > 1 && held_[0] == '\xED' && static_cast<unsigned char>(held_[1]) >= 0xA0;
}

}  // namespace bita
