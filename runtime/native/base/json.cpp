#include "json.h"

#include <stdexcept>

namespace bita {

namespace {

constexpr size_t kMaxShown = 60;  // characters

// Whether no value is nested deeper than is allowed; brackets in strings do not count.
bool is_shallow(std::string_view text) {
  size_t depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > kMaxJsonDepth) return false;
    } else if ((c == '}' || c == ']') && depth > 0) {
      --depth;
    }
  }
  return true;
}

}  // namespace

Json parse_json(std::string_view text) {
  if (!is_shallow(text)) {
    throw std::runtime_error("it is nested over " + std::to_string(kMaxJsonDepth) + " deep");
  }
  try {
    return Json::parse(text.begin(), text.end());
  } catch (const Json::parse_error& error) {
    throw std::runtime_error("byte " + std::to_string(error.byte) + " is not JSON");
  }
}

std::string shown(const Json& value) {
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() <= kMaxShown) return text;
  size_t end = kMaxShown;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return text.substr(0, end) + "...";
}

}  // namespace bita
