// Incremental decoding of UTF-8.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace bita {

// Decodes bytes that arrive in pieces. Invalid bytes become U+FFFD, one for each longest prefix of
// a character, like Python's decoder with errors="replace". At most 3 bytes are held back. As in
// Python the first two bytes of a surrogate are held back too, and then replaced one by one.
class Utf8Decoder {
 public:
  // Adds bytes and appends the characters that they complete to `text`.
  void push(std::string_view bytes, std::string& text);

  // Ends the text. An unfinished character becomes one U+FFFD.
  void flush(std::string& text);

 private:
  void add(unsigned char byte, std::string& text);
  bool continues(unsigned char byte) const;
  bool is_surrogate() const;

  char held_[4] = {};  // the first bytes of a character
  size_t num_held_ = 0;
  size_t length_ = 0;  // of that character when complete
};

}  // namespace bita
