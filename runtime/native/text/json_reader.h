// A streaming JSON reader, which builds no tree of values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace bita {

// Reads a UTF-8 JSON text from front to back. A function that finds something other than it expects
// throws std::runtime_error that says where. The nesting depth is limited as in parse_json.
//
//   reader.open('{');
//   while (reader.next_key(key)) { ... read or skip one value ... }
//
// Strings without escapes are views of the text. Others are views of the reader's memory and valid
// until the next string is read.
class JsonReader {
 public:
  explicit JsonReader(std::string_view text) : JsonReader(text, text) {}

  // whole: the text that contains `text`; messages count bytes from its start.
  JsonReader(std::string_view text, std::string_view whole) : text_(text), whole_(whole) {}

  // Enters an object or an array: `bracket` is '{' or '['.
  void open(char bracket);

  // Reads the key of the current object's next member; returns false at the end of the object.
  bool next_key(std::string_view& key);

  // Moves to the current array's next element; returns false at the end of the array.
  bool next_element();

  // Reads a string.
  std::string_view string();

  // Reads a non-negative integer.
  uint64_t number();

  // Skips a value and returns its text. Only brackets and strings are checked.
  std::string_view skip();

  // Returns the first character of the next value.
  char peek();

  // Throws if anything but white space follows.
  void end();

 private:
  bool next(char closing);
  void skip_space();
  void skip_string();
  void expect(char mark);
  void unescape(size_t from);
  void append_escaped();
  uint32_t hex4();
  [[noreturn]] void fail() const;

  std::string_view text_;
  std::string_view whole_;
  size_t at_ = 0;
  bool is_first_ = false;  // whether the current array or object was just entered
  std::string unescaped_;
};

}  // namespace bita
