// Bytes that come in pieces, as text.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace bita {

// Joins bytes to characters. What is not UTF-8 becomes U+FFFD, one for each longest beginning of a
// character, as Python's decoder with errors="replace" does; at most 3 bytes are held back. As in
// Python the first two bytes of a surrogate are held back too, and then shown one by one.
class Utf8Decoder {
 public:
  // Appends to `text` the characters that are complete with these bytes.
  void push(std::string_view bytes, std::string& text);

  // Ends the text: an unfinished character is one U+FFFD.
  void flush(std::string& text);

 private:
  void add(unsigned char byte, std::string& text);
  bool continues(unsigned char byte) const;
  bool is_surrogate() const;

  char held_[4] = {};  // the beginning of a character
  size_t num_held_ = 0;
  size_t length_ = 0;  // of that character when it is whole
};

}  // namespace bita
