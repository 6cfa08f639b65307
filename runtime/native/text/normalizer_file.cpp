#include <algorithm>
#include <array>
#include <cstdio>
#include <stdexcept>

#include "character_classes.h"
#include "file_fields.h"
#include "rule_files.h"
#include "utf8.h"

namespace bita {

namespace {

constexpr double kMaxGrowth = 64;  // of a text; real normalizers replace one character by another

bool has_expression(const Json& rule) {
  const Json& pattern = field(rule, "pattern");
  return pattern.is_object() && pattern.contains("Regex");
}

// Returns the factor by which a rule can lengthen a text, at most.
double growth_of(const Json& rule, const std::string& type) {
  if (type == "Prepend") {
    return std::max(1.0, static_cast<double>(num_characters(text_field(rule, "prepend"))));
  }
  if (type != "Replace") return 1.0;
  const auto length = static_cast<double>(num_characters(text_field(rule, "content")));
  const Json& pattern = field(rule, "pattern");
  const std::string old = has_expression(rule) ? "" : text_field(pattern, "String");
  if (old.empty()) return 1.0 + length;  // it may match between all characters
  return std::max(1.0, length / static_cast<double>(num_characters(old)));
}

// Returns whether a rule neither removes the start of a text nor puts something before it.
bool keeps_start(const Json& rule, const std::string& type) {
  if (type == "Strip" || type == "StripAccents" || type == "Prepend") return false;
  return type != "Replace" || (!has_expression(rule) && !text_field(rule, "content").empty() &&
                               !text_field(field(rule, "pattern"), "String").empty());
}

std::string three_digits(double value) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.3g", value);
  return text.data();
}

Rewrite replacement(const Json& rule) {
  const std::string content = text_field(rule, "content");
  const Json& pattern = field(rule, "pattern");
  if (pattern.is_object() && pattern.contains("String")) {
    const std::string old = text_field(pattern, "String");
    if (old.size() == 1 && (old[0] & 0x80) == 0) return replacing_character(old[0], content);
  }
  return replacing(pattern_field(rule), content);
}

Rewrite rewrite_of(const Json& rule, const std::string& type) {
  if (type == "NFC") return to_form(UnicodeForm::kNfc);
  if (type == "NFD") return to_form(UnicodeForm::kNfd);
  if (type == "NFKC") return to_form(UnicodeForm::kNfkc);
  if (type == "NFKD") return to_form(UnicodeForm::kNfkd);
  if (type == "Lowercase") return to_lowercase();
  if (type == "Strip")
    return stripping(flag_field(rule, "strip_left"), flag_field(rule, "strip_right"));
  if (type == "StripAccents") return replacing(Expression(combining_mark()), "");
  if (type == "Prepend") return prefixing(text_field(rule, "prepend"), {});
  if (type == "Replace") return replacement(rule);
  if (type == "ByteLevel") return to_byte_characters();
  throw std::runtime_error(
      "it is not supported; supported are NFC, NFD, NFKC, NFKD, Lowercase, Strip, StripAccents, "
      "Prepend, Replace, ByteLevel and Sequence: choose another model");
}

}  // namespace

void read_normalizer(const Json& part, TokenizerParts& parts, std::vector<std::string>& faults) {
  double growth = 1.0;
  read_rules(flat_rules(part, "normalizers"), "normalizer", faults, [&](const Json& rule) {
    const std::string type = type_of(rule);
    parts.normalizer.rewrites.push_back(rewrite_of(rule, type));
    parts.normalizer.keeps_start &= keeps_start(rule, type);
    growth *= growth_of(rule, type);
    if (type == "Replace" && has_expression(rule)) {
      parts.expressions.push_back(text_field(rule["pattern"], "Regex"));
    }
  });
  if (growth > kMaxGrowth) {
    faults.push_back("its normalizer makes a text up to " + three_digits(growth) +
                     " times longer; at most 64 times is supported: choose another model");
  }
}

}  // namespace bita
