#include "rewrites.h"

#include <memory>
#include <utility>

#include "byte_alphabet.h"
#include "utf8.h"

namespace bita {

namespace {

constexpr size_t kMaxByteGrowth = 256;  // 64 characters of up to 4 bytes, the limit for the file
constexpr size_t kFewBytes = 1 << 16;
constexpr size_t kMaxBytes = size_t{1} << 31;  // positions in a word are 32-bit numbers

}  // namespace

Rewrite to_form(UnicodeForm form) {
  return [form](const RewriteInput& input, std::string& result) {
    append_in_form(input.text, form, result);
  };
}

Rewrite to_lowercase() {
  return
      [](const RewriteInput& input, std::string& result) { append_lowercase(input.text, result); };
}

Rewrite to_byte_characters() {
  return [](const RewriteInput& input, std::string& result) {
    append_byte_characters(input.text, result);
  };
}

Rewrite replacing(Expression expression, std::string content) {
  const auto shared = std::make_shared<const Expression>(std::move(expression));
  return [shared, content = std::move(content)](const RewriteInput& input, std::string& result) {
    size_t done = 0;
    for (const Match& match : shared->matches(input.text, input.deadline)) {
      result.append(input.text.substr(done, match.start - done));
      result.append(content);
      done = match.end;
    }
    result.append(input.text.substr(done));
  };
}

Rewrite replacing_character(char old, std::string content) {
  return [old, content = std::move(content)](const RewriteInput& input, std::string& result) {
    size_t done = 0;
    for (size_t at = input.text.find(old); at != std::string_view::npos;
         at = input.text.find(old, done)) {
      result.append(input.text.substr(done, at - done));
      result.append(content);
      done = at + 1;
    }
    result.append(input.text.substr(done));
  };
}

Rewrite prefixing(std::string prefix, PrefixOptions options) {
  return [prefix = std::move(prefix), options](const RewriteInput& input, std::string& result) {
    const bool is_there = input.text.substr(0, prefix.size()) == prefix;
    const bool is_wanted = !(options.unless_there && is_there) &&
                           !(options.only_at_start && !input.is_start) && !input.text.empty();
    if (is_wanted) result.append(prefix);
    result.append(input.text);
  };
}

Rewrite stripping(bool at_left, bool at_right) {
  return [at_left, at_right](const RewriteInput& input, std::string& result) {
    std::string_view text = input.text;
    if (at_left) text.remove_prefix(leading_space(text));
    if (at_right) text = text.substr(0, trailing_space(text));
    result.append(text);
  };
}

bool is_white_space(uint32_t code_point) {
  switch (code_point) {
    case 0x20:
    case 0x85:
    case 0xA0:
    case 0x1680:
    case 0x2028:
    case 0x2029:
    case 0x202F:
    case 0x205F:
    case 0x3000:
      return true;
    default:
      return (code_point >= 0x09 && code_point <= 0x0D) ||
             (code_point >= 0x2000 && code_point <= 0x200A);
  }
}

size_t leading_space(std::string_view text) {
  size_t at = 0;
  while (at < text.size() && is_white_space(code_point_at(text, at))) at += utf8_length(text[at]);
  return at;
}

size_t trailing_space(std::string_view text) {
  size_t end = text.size();
  while (end > 0) {
    size_t at = end - 1;
    while ((static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
    if (!is_white_space(code_point_at(text, at))) break;
    end = at;
  }
  return end;
}

std::string Normalizer::apply(std::string_view text, const Deadline& deadline) const {
  std::string now(text);
  for (const Rewrite& rewrite : rewrites) {
    std::string next;
    next.reserve(now.size() + now.size() / 4);
    rewrite({now, false, deadline}, next);
    check_growth(text.size(), next.size());
    now = std::move(next);
  }
  return now;
}

void check_growth(size_t before, size_t after) {
  if (after > kMaxBytes) throw TooSlow("it becomes too long");
  if (after > kFewBytes && after / kMaxByteGrowth > before) {
    throw TooSlow("it becomes " + std::to_string(after / (before + 1)) + " times longer");
  }
}

}  // namespace bita
