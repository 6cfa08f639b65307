#include "decoding_rule.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <stdexcept>

#include "../base/fault.h"
#include "byte_alphabet.h"
#include "file_fields.h"
#include "utf8.h"

namespace bita {

namespace {

constexpr double kMaxGrowth =
    64;  // of a token by replacements; real decoders replace "\u2581" by " "
constexpr const char* kSupported =
    "ByteLevel; Replace, ByteFallback, Metaspace and Strip of each token, then Fuse and Strip "
    "(SentencePiece); or none";

[[noreturn]] void refuse(const std::string& what) {
  throw Fault(FaultKind::kEngine, "the tokenizer's decoder " + what);
}

std::string kinds_of(const std::vector<Json>& rules, size_t from) {
  std::string kinds;
  for (size_t i = from; i < rules.size(); ++i)
    kinds += (i == from ? "" : " + ") + type_of(rules[i]);
  return kinds;
}

bool is_step(const Json& rule) {
  const std::string type = type_of(rule);
  return type == "Replace" || type == "ByteFallback" || type == "Metaspace" || type == "Strip";
}

std::string one_character(const Json& rule, const char* name) {
  const std::string text = text_field(rule, name);
  if (num_characters(text) == 1) return text;
  throw std::runtime_error(std::string(name) + " is " + shown(text) + ", not one character");
}

size_t count_field(const Json& rule, const char* name) {
  const Json& value = field(rule, name);
  if (value.is_number_unsigned()) return value.get<size_t>();
  throw std::runtime_error(std::string(name) + " is " + shown(value) + ", not a count");
}

DecodingStep step_of(const Json& rule) {
  const std::string type = type_of(rule);
  DecodingStep step{DecodingStep::Kind::kReplace, "", " ", " ", 0, 0};
  if (type == "ByteFallback") {
    step.kind = DecodingStep::Kind::kBytes;
  } else if (type == "Strip") {
    step.kind = DecodingStep::Kind::kStrip;
    step.old = one_character(rule, "content");
    step.max_start = count_field(rule, "start");
    step.max_end = count_field(rule, "stop");
  } else if (type == "Metaspace") {  // all marks in the first token are dropped
    step.old = one_character(rule, "replacement");
    const bool is_never =
        rule.contains("prepend_scheme") && text_field(rule, "prepend_scheme") == "never";
    if (!is_never) step.first_replacement.clear();
  } else {
    const Json& pattern = field(rule, "pattern");
    if (pattern.is_object() && pattern.contains("String")) step.old = text_field(pattern, "String");
    if (step.old.empty()) {
      refuse("replaces " + shown(pattern) +
             ", which is not a text; such a decoder is not supported: choose another model");
    }
    step.replacement = step.first_replacement = text_field(rule, "content");
  }
  return step;
}

void check_growth(const std::vector<DecodingStep>& steps) {
  double growth = 1;
  for (const DecodingStep& step : steps) {
    if (step.kind != DecodingStep::Kind::kReplace) continue;
    growth *= std::max(1.0, static_cast<double>(num_characters(step.replacement)) /
                                static_cast<double>(num_characters(step.old)));
  }
  if (growth <= kMaxGrowth) return;
  std::array<char, 400> number{};
  std::snprintf(number.data(), number.size(), "%.0f", growth);
  refuse("makes tokens up to " + std::string(number.data()) +
         " times longer; at most 64 times is supported: choose another model");
}

std::string replaced(const std::string& token, const std::string& old, const std::string& with) {
  std::string result;
  size_t done = 0;
  for (size_t at = token.find(old); at != std::string::npos; at = token.find(old, done)) {
    result.append(token, done, at - done);
    result.append(with);
    done = at + old.size();
  }
  return result.append(token, done, std::string::npos);
}

std::string stripped(const std::string& token, const DecodingStep& step) {
  const std::string& mark = step.old;
  size_t start = 0;
  for (size_t i = 0; i < step.max_start && token.compare(start, mark.size(), mark) == 0; ++i) {
    start += mark.size();
  }
  size_t end = token.size();
  for (size_t i = 0; i < step.max_end && end >= start + mark.size() &&
                     token.compare(end - mark.size(), mark.size(), mark) == 0;
       ++i) {
    end -= mark.size();
  }
  return token.substr(start, end - start);
}

// Returns the byte of "<0x41>", or -1 if the token does not have that form.
int byte_of(const std::string& token) {
  if (token.size() != 6 || token.compare(0, 3, "<0x") != 0 || token[5] != '>') return -1;
  const std::string digits = token.substr(3, 2);
  if (digits.find_first_not_of("0123456789abcdefABCDEF") != std::string::npos) return -1;
  return std::stoi(digits, nullptr, 16);
}

}  // namespace

DecodingRule DecodingRule::parse(const Json& decoder) try {
  DecodingRule rule;
  if (decoder.is_null()) {  // tokens are joined with spaces
    rule.has_space_before_ = true;
    rule.strip_text_ = " ";
    rule.strip_count_ = 1;
    return rule;
  }
  const std::vector<Json> rules = flat_rules(decoder, "decoders");
  const std::string kinds = kinds_of(rules, 0);
  rule.is_byte_level_ = kinds == "ByteLevel" || kinds == "ByteLevel + Fuse";
  if (rule.is_byte_level_) return rule;
  const auto fuse = std::find_if(rules.begin(), rules.end(),
                                 [](const Json& one) { return type_of(one) == "Fuse"; });
  const std::string end = kinds_of(rules, static_cast<size_t>(fuse - rules.begin()));
  if (!std::all_of(rules.begin(), fuse, is_step) ||
      (!end.empty() && end != "Fuse" && end != "Fuse + Strip")) {
    throw Fault(FaultKind::kEngine, "the tokenizer decodes by " + kinds +
                                        ", which is not supported; supported: " + kSupported +
                                        ". Choose a model with such a tokenizer");
  }
  for (auto one = rules.begin(); one != fuse; ++one) {
    rule.steps_.push_back(step_of(*one));
    rule.has_first_ = rule.has_first_ || type_of(*one) == "Metaspace";
  }
  check_growth(rule.steps_);
  if (end != "Fuse + Strip") return rule;
  const DecodingStep strip = step_of(rules.back());
  if (strip.max_end > 0) {
    refuse(
        "strips the end of the text, which cannot be shown while the text grows; choose "
        "another model");
  }
  rule.strip_text_ = strip.old;
  rule.strip_count_ = strip.max_start;
  return rule;
} catch (const Fault&) {
  throw;
} catch (const std::runtime_error& error) {
  refuse(std::string("is not one (") + error.what() + "); choose another model");
}

void DecodingRule::append(std::string_view token, bool is_first, std::string& bytes) const {
  if (is_byte_level_) {
    append_bytes_of(token, bytes);
    return;
  }
  if (has_space_before_) bytes.push_back(' ');
  std::string now(token);
  for (const DecodingStep& step : steps_) {
    if (step.kind == DecodingStep::Kind::kReplace) {
      now = replaced(now, step.old, is_first ? step.first_replacement : step.replacement);
    } else if (step.kind == DecodingStep::Kind::kStrip) {
      now = stripped(now, step);
    } else if (const int byte = byte_of(now); byte >= 0) {
      bytes.push_back(static_cast<char>(byte));
      return;
    }
  }
  bytes += now;
}

}  // namespace bita
