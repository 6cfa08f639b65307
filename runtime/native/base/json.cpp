#include "json.h"

#include <cmath>
#include <cstdio>
#include <stdexcept>

#include "files.h"

namespace bita {

namespace {

constexpr size_t kMaxShown = 60;  // characters
constexpr size_t kMaxItems = 64;  // quoted of a list or an object

// Returns whether the nesting is within kMaxJsonDepth. Brackets in strings do not count.
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

// Quotes a string of printable characters like Python's repr.
std::string quoted(const std::string& text) {
  const bool has_single = text.find('\'') != std::string::npos;
  const char mark = has_single && text.find('"') == std::string::npos ? '"' : '\'';
  std::string found(1, mark);
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '\\' || c == mark) {
      found += {'\\', c};
    } else if (c == '\n') {
      found += "\\n";
    } else if (c == '\t') {
      found += "\\t";
    } else if (c == '\r') {
      found += "\\r";
    } else if (byte < 0x20 || byte == 0x7F) {
      char code[5];
      std::snprintf(code, sizeof code, "\\x%02x", byte);
      found += code;
    } else {
      found += c;
    }
  }
  return found + mark;
}

std::string written(const Json& value) {
  if (value.is_null()) return "None";
  if (value.is_boolean()) return value.get<bool>() ? "True" : "False";
  if (value.is_string()) return quoted(value.get_ref<const std::string&>());
  if (!value.is_structured()) return value.dump();
  std::string inside;
  size_t count = 0;
  for (const auto& item : value.items()) {
    if (count++ == kMaxItems) break;  // the rest is not shown
    inside += count > 1 ? ", " : "";
    inside += value.is_object() ? quoted(item.key()) + ": " : "";
    inside += written(item.value());
  }
  return value.is_object() ? "{" + inside + "}" : "[" + inside + "]";
}

// Returns the first characters, with "..." if there are more.
std::string cut_text(const std::string& text) {
  size_t num_characters = 0, end = text.size();
  for (size_t i = 0; i < text.size(); ++i) {
    if ((static_cast<unsigned char>(text[i]) & 0xC0) == 0x80) continue;
    if (num_characters++ == kMaxShown - 3) end = i;
    if (num_characters > kMaxShown) return text.substr(0, end) + "...";
  }
  return text;
}

std::string span(const std::string& what, const std::string& low, const std::string& high) {
  if (!low.empty() && !high.empty()) return what + " of " + low + " to " + high;
  if (!low.empty()) return what + " of " + low + " or more";
  return high.empty() ? what : what + " of at most " + high;
}

std::string whole_span(const std::string& what, int64_t least, int64_t most) {
  return span(what, std::to_string(least), most == kMaxIndex ? "" : std::to_string(most));
}

std::string shortest(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}

std::string number_span(const std::string& what, double least, double most) {
  return span(what, least > -kMaxFloat ? shortest(least) : "",
              most < kMaxFloat ? shortest(most) : "");
}

std::optional<int64_t> as_whole(const Json& value, int64_t least, int64_t most) {
  int64_t found = 0;
  if (value.is_number_unsigned()) {
    const auto wide = value.get<uint64_t>();
    if (wide > static_cast<uint64_t>(kMaxIndex)) return std::nullopt;
    found = static_cast<int64_t>(wide);
  } else if (value.is_number_integer()) {
    found = value.get<int64_t>();
  } else if (value.is_number_float()) {
    const double number = value.get<double>();
    if (number != std::floor(number) || std::fabs(number) > 9e15) return std::nullopt;
    found = static_cast<int64_t>(number);
  } else {
    return std::nullopt;
  }
  return found >= least && found <= most ? std::optional(found) : std::nullopt;
}

std::optional<double> as_number(const Json& value, double least, double most) {
  if (!value.is_number()) return std::nullopt;
  const double found = value.get<double>();
  return std::isfinite(found) && found >= least && found <= most ? std::optional(found)
                                                                 : std::nullopt;
}

}  // namespace

Json parse_json(std::string_view text) {
  if (!is_shallow(text)) {
    throw std::runtime_error("it is nested over " + std::to_string(kMaxJsonDepth) + " deep");
  }
  try {
    return Json::parse(text.begin(), text.end());
  } catch (const Json::exception& error) {
    const auto* broken = dynamic_cast<const Json::parse_error*>(&error);
    if (broken) throw std::runtime_error("byte " + std::to_string(broken->byte) + " is not JSON");
    throw std::runtime_error("a number in it is too large");
  }
}

Json read_json_object(const fs::path& path, FaultKind kind, const std::string& fix,
                      uint64_t max_bytes) {
  std::string content;
  try {
    content = read_regular_file(path, max_bytes);
  } catch (const std::runtime_error& error) {
    throw Fault(kind, text_of(path) + " cannot be read (" + error.what() + "); " + fix);
  }
  Json value;
  try {
    value = parse_json(content);
  } catch (const std::runtime_error& error) {
    throw Fault(kind, text_of(path) + " is not readable JSON (" + error.what() + "); " + fix);
  }
  if (!value.is_object()) {
    throw Fault(kind, text_of(path) + " holds " + shown(value) + ", not a JSON object; " + fix);
  }
  return value;
}

std::string shown(const Json& value) { return cut_text(written(value)); }

std::string shown(const std::string& text) { return cut_text(quoted(text)); }

const Json* Fields::find(const std::string& key, bool is_optional, const std::string& what) {
  const auto found = object_.find(key);
  if (found != object_.end()) return &*found;
  if (!is_optional) add_fault(key + " is missing, not " + what);
  return nullptr;
}

void Fields::add_type_fault(const std::string& key, const Json& value, const std::string& what) {
  add_fault(key + " is " + shown(value) + ", not " + what);
}

int64_t Fields::whole(const std::string& key, int64_t least, int64_t most,
                      std::optional<int64_t> otherwise) {
  const std::string what = whole_span("a whole number", least, most);
  const Json* value = find(key, otherwise.has_value(), what);
  if (!value) return otherwise.value_or(least);
  const std::optional<int64_t> found = as_whole(*value, least, most);
  if (!found) add_type_fault(key, *value, what);
  return found.value_or(least);
}

double Fields::number(const std::string& key, double least, double most,
                      std::optional<double> otherwise) {
  const std::string what = number_span("a number", least, most);
  const Json* value = find(key, otherwise.has_value(), what);
  const double neutral = least > -kMaxFloat ? least : 0.0;
  if (!value) return otherwise.value_or(neutral);
  const std::optional<double> found = as_number(*value, least, most);
  if (!found) add_type_fault(key, *value, what);
  return found.value_or(neutral);
}

std::string Fields::text(const std::string& key, const std::optional<std::string>& otherwise) {
  const Json* value = find(key, otherwise.has_value(), "a text");
  if (!value) return otherwise.value_or("");
  if (value->is_string()) return value->get<std::string>();
  add_type_fault(key, *value, "a text");
  return "";
}

std::vector<int64_t> Fields::wholes(const std::string& key, int64_t least, int64_t most,
                                    const std::optional<std::vector<int64_t>>& otherwise) {
  const std::string what = whole_span("a list of whole numbers", least, most);
  const Json* value = find(key, otherwise.has_value(), what);
  std::vector<int64_t> found;
  if (!value) return otherwise.value_or(found);
  bool is_list = value->is_array();
  for (size_t i = 0; is_list && i < value->size(); ++i) {
    const std::optional<int64_t> item = as_whole((*value)[i], least, most);
    is_list = item.has_value();
    found.push_back(item.value_or(0));
  }
  if (is_list) return found;
  add_type_fault(key, *value, what);
  return {};
}

std::vector<double> Fields::numbers(const std::string& key, double least, double most,
                                    const std::optional<std::vector<double>>& otherwise) {
  const std::string what = number_span("a list of numbers", least, most);
  const Json* value = find(key, otherwise.has_value(), what);
  std::vector<double> found;
  if (!value) return otherwise.value_or(found);
  bool is_list = value->is_array();
  for (size_t i = 0; is_list && i < value->size(); ++i) {
    const std::optional<double> item = as_number((*value)[i], least, most);
    is_list = item.has_value();
    found.push_back(item.value_or(0.0));
  }
  if (is_list) return found;
  add_type_fault(key, *value, what);
  return {};
}

Json Fields::table(const std::string& key, bool is_optional) {
  const Json* value = find(key, is_optional, "an object");
  if (!value) return Json::object();
  if (value->is_object()) return *value;
  add_type_fault(key, *value, "an object");
  return Json::object();
}

}  // namespace bita
