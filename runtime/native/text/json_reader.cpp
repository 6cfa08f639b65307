#include "json_reader.h"

#include <algorithm>
#include <stdexcept>

#include "../base/json.h"
#include "utf8.h"

namespace bita {

void JsonReader::open(char bracket) {
  skip_space();
  expect(bracket);
  is_first_ = true;
}

bool JsonReader::next_key(std::string_view& key) {
  if (!next('}')) return false;
  key = string();
  skip_space();
  expect(':');
  return true;
}

bool JsonReader::next_element() { return next(']'); }

bool JsonReader::next(char closing) {
  skip_space();
  const bool is_first = is_first_;
  is_first_ = false;
  if (at_ < text_.size() && text_[at_] == closing) {
    ++at_;
    return false;
  }
  if (!is_first) expect(',');
  return true;
}

std::string_view JsonReader::string() {
  skip_space();
  expect('"');
  const size_t from = at_;
  for (; at_ < text_.size(); ++at_) {
    const char c = text_[at_];
    if (c == '"') return text_.substr(from, at_++ - from);
    if (static_cast<unsigned char>(c) < 0x20) fail();
    if (c == '\\') break;
  }
  unescape(from);
  return unescaped_;
}

uint64_t JsonReader::number() {
  skip_space();
  const size_t from = at_;
  uint64_t value = 0;
  for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
    if (at_ - from >= 18) fail();
    value = value * 10 + static_cast<uint64_t>(text_[at_] - '0');
  }
  const bool has_zero = at_ - from > 1 && text_[from] == '0';
  const bool has_more =
      at_ < text_.size() && std::string_view(".eE").find(text_[at_]) != std::string_view::npos;
  if (at_ == from || has_zero || has_more) fail();
  return value;
}

std::string_view JsonReader::skip() {
  skip_space();
  const size_t from = at_;
  size_t depth = 0;
  for (; at_ < text_.size(); ++at_) {
    const char c = text_[at_];
    if (c == '"') {
      skip_string();
      --at_;
    } else if (c == '{' || c == '[') {
      if (++depth > kMaxJsonDepth) {
        throw std::runtime_error("it is nested over " + std::to_string(kMaxJsonDepth) + " deep");
      }
    } else if (c == '}' || c == ']') {
      if (depth == 0) break;
      --depth;
    } else if (c == ',' && depth == 0) {
      break;
    }
  }
  if (depth > 0 || at_ == from) fail();
  return text_.substr(from, at_ - from);
}

char JsonReader::peek() {
  skip_space();
  return at_ < text_.size() ? text_[at_] : '\0';
}

void JsonReader::end() {
  skip_space();
  if (at_ < text_.size()) fail();
}

void JsonReader::skip_space() {
  while (at_ < text_.size() &&
         (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t'))
    ++at_;
}

void JsonReader::skip_string() {
  for (;;) {
    const size_t from = ++at_;
    at_ = std::min(text_.find('"', from), text_.size());
    if (at_ == text_.size()) fail();
    size_t backslashes = 0;
    while (at_ - backslashes > from && text_[at_ - backslashes - 1] == '\\') ++backslashes;
    if (backslashes % 2 == 0) break;
  }
  ++at_;
}

void JsonReader::expect(char mark) {
  if (at_ >= text_.size() || text_[at_] != mark) fail();
  ++at_;
}

// Reads the rest of a string that began at `from`, from its first escape.
void JsonReader::unescape(size_t from) {
  unescaped_.assign(text_.substr(from, at_ - from));
  while (at_ < text_.size()) {
    const char c = text_[at_++];
    if (c == '"') return;
    if (static_cast<unsigned char>(c) < 0x20) break;
    if (c == '\\') {
      append_escaped();
    } else {
      unescaped_.push_back(c);
    }
  }
  fail();
}

void JsonReader::append_escaped() {
  constexpr std::string_view kMarks = "\"\\/bfnrt";
  constexpr std::string_view kMeant = "\"\\/\b\f\n\r\t";
  if (at_ >= text_.size()) fail();
  const char mark = text_[at_++];
  const size_t found = kMarks.find(mark);
  if (found != std::string_view::npos) {
    unescaped_.push_back(kMeant[found]);
    return;
  }
  if (mark != 'u') fail();
  uint32_t code = hex4();
  if (code >= 0xD800 && code < 0xDC00) {  // first half of a surrogate pair
    expect('\\');
    expect('u');
    const uint32_t low = hex4();
    if (low < 0xDC00 || low > 0xDFFF) fail();
    code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
  } else if (code >= 0xDC00 && code < 0xE000) {
    fail();
  }
  append_utf8(code, unescaped_);
}

uint32_t JsonReader::hex4() {
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i) {
    if (at_ >= text_.size()) fail();
    const char c = text_[at_++];
    const bool is_digit = c >= '0' && c <= '9';
    const char lower = static_cast<char>(c | 0x20);
    if (!is_digit && (lower < 'a' || lower > 'f')) fail();
    value = value * 16 + static_cast<uint32_t>(is_digit ? c - '0' : lower - 'a' + 10);
  }
  return value;
}

void JsonReader::fail() const {
  const auto before = static_cast<size_t>(text_.data() - whole_.data());
  throw std::runtime_error("byte " + std::to_string(before + at_ + 1) +
                           " is unexpected in a tokenizer file");
}

}  // namespace bita
