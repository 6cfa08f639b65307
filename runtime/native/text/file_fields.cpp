#include "file_fields.h"

#include <stdexcept>

#include "expression_syntax.h"

namespace bita {

namespace {

constexpr size_t kMaxRules = 64;  // per part; files of models have up to five

}  // namespace

const Json& field(const Json& rule, const char* name) {
  if (!rule.is_object()) throw std::runtime_error(shown(rule) + " is not an object");
  const auto found = rule.find(name);
  if (found == rule.end()) throw std::runtime_error(shown(rule) + " has no " + name);
  return *found;
}

std::string text_field(const Json& rule, const char* name) {
  const Json& value = field(rule, name);
  if (value.is_string()) return value.get<std::string>();
  throw std::runtime_error(std::string(name) + " is " + shown(value) + ", not a text");
}

bool flag_field(const Json& rule, const char* name, std::optional<bool> other) {
  if (other && rule.is_object() && !rule.contains(name)) return *other;
  const Json& value = field(rule, name);
  if (value.is_boolean()) return value.get<bool>();
  throw std::runtime_error(std::string(name) + " is " + shown(value) + ", not true or false");
}

std::string type_of(const Json& rule) { return text_field(rule, "type"); }

std::vector<Json> flat_rules(const Json& part, const char* children) {
  std::vector<Json> rules;
  std::vector<Json> waiting;
  if (!part.is_null()) waiting.push_back(part);
  size_t num_read = 0;
  while (!waiting.empty()) {
    const Json rule = std::move(waiting.back());
    waiting.pop_back();
    if (++num_read > kMaxRules) {
      throw std::runtime_error("it has over " + std::to_string(kMaxRules) + " " + children);
    }
    if (type_of(rule) != "Sequence") {
      rules.push_back(rule);
      continue;
    }
    const Json& inner = field(rule, children);
    if (!inner.is_array()) throw std::runtime_error(shown(inner) + " is not a list");
    if (inner.size() > kMaxRules) {
      throw std::runtime_error("it has over " + std::to_string(kMaxRules) + " " + children);
    }
    waiting.insert(waiting.end(), inner.rbegin(), inner.rend());
  }
  return rules;
}

Expression pattern_field(const Json& rule) {
  const Json& pattern = field(rule, "pattern");
  if (pattern.is_object() && pattern.size() == 1) {
    if (pattern.contains("String"))
      return Expression(literal_pattern(text_field(pattern, "String")));
    if (pattern.contains("Regex")) return Expression(pcre2_pattern(text_field(pattern, "Regex")));
  }
  throw std::runtime_error("pattern is " + shown(pattern) + ", not a String or a Regex");
}

void read_rules(const std::vector<Json>& rules, const std::string& part,
                std::vector<std::string>& faults, const std::function<void(const Json&)>& read) {
  for (const Json& rule : rules) {
    try {
      read(rule);
    } catch (const std::runtime_error& error) {
      faults.push_back("its " + part + " " + type_of(rule) + ": " + error.what());
    }
  }
}

}  // namespace bita
