// JSON read from front to back, without building a value of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace bita {

// Walks through a JSON text that is UTF-8. A function that finds something else than what it is
// for throws std::runtime_error that says where; the depth of nesting is limited as in parse_json.
//
//   reader.open('{');
//   while (reader.next_key(key)) { ... read or skip one value ... }
//
// Strings are views of the text where nothing in them is escaped, and else of the reader's memory,
// until the next string is read.
class JsonReader {
 public:
  explicit JsonReader(std::string_view text) : JsonReader(text, text) {}

  // whole: the text that `text` is a part of, which messages count the bytes of.
  JsonReader(std::string_view text, std::string_view whole) : text_(text), whole_(whole) {}

  // Enters an object or an array: `bracket` is '{' or '['.
  void open(char bracket);

  // The key of the next member of the object that was entered; false at its end.
  bool next_key(std::string_view& key);

  // Whether the array that was entered has one more element; false at its end.
  bool next_element();

  std::string_view string();

  // A whole number from 0 on.
  uint64_t number();

  // The text of one value. Only its brackets and strings are looked at.
  std::string_view skip();

  // The first character of the next value.
  char peek();

  // Throws if anything follows.
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
  bool is_first_ = false;  // nothing of the array or object just entered was read
  std::string unescaped_;
};

}  // namespace bita
