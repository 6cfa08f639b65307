#include "expression.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <stdexcept>

#include "utf8.h"

namespace bita {

namespace {

constexpr uint32_t kMaxSteps = 1000000;           // per search, which take about 10 ms
constexpr uint32_t kMaxHeapKib = 20000;           // per search without JIT
constexpr size_t kMaxWrittenPattern = 256 << 10;  // bytes, with classes written out
constexpr size_t kWindow = 512;  // start positions tried between checks of the deadline
constexpr size_t kMatchesPerCheck = 16;

const pcre2_code* code_of(const void* code) { return static_cast<const pcre2_code*>(code); }

std::string message_of(int error) {
  std::array<PCRE2_UCHAR, 256> text{};
  pcre2_get_error_message(error, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

// Searches in one text.
class Search {
 public:
  Search(const pcre2_code* code, std::string_view text, const Deadline& deadline)
      : code_(code),
        text_(text),
        deadline_(deadline),
        context_(pcre2_match_context_create(nullptr)),
        data_(pcre2_match_data_create(1, nullptr)) {
    if (!context_ || !data_) throw std::bad_alloc();
    pcre2_set_match_limit(context_.get(), kMaxSteps);
    pcre2_set_heap_limit(context_.get(), kMaxHeapKib);
  }

  // Finds the first match that starts at `from` or later; returns false if there is none.
  bool find(size_t from, Match& match) {
    for (;; from = next_window(from)) {
      const size_t last_start = std::min(from + kWindow, text_.size());
      pcre2_set_offset_limit(context_.get(), last_start);
      const int result = search(from);
      if (++num_searches_ % kMatchesPerCheck == 0 || result < 0) deadline_.check();
      if (result >= 0) {
        const PCRE2_SIZE* found = pcre2_get_ovector_pointer(data_.get());
        match = {found[0], found[1]};
        return true;
      }
      if (result != PCRE2_ERROR_NOMATCH) throw TooSlow(message_of(result));
      if (last_start == text_.size()) return false;
    }
  }

 private:
  struct FreeContext {
    void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
  };
  struct FreeData {
    void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
  };

  int search(size_t from) {
    const auto* subject = reinterpret_cast<PCRE2_SPTR>(text_.data());
    uint32_t options = PCRE2_NO_UTF_CHECK;
    int result =
        pcre2_match(code_, subject, text_.size(), from, options, data_.get(), context_.get());
    if (result == PCRE2_ERROR_JIT_STACKLIMIT) {
      options |= PCRE2_NO_JIT;
      result =
          pcre2_match(code_, subject, text_.size(), from, options, data_.get(), context_.get());
    }
    return result;
  }

  // Returns the start of the first character that has not been tried.
  size_t next_window(size_t from) const {
    size_t next = from + kWindow + 1;
    while (next < text_.size() && (static_cast<unsigned char>(text_[next]) & 0xC0) == 0x80) ++next;
    return std::min(next, text_.size());
  }

  const pcre2_code* code_;
  std::string_view text_;
  const Deadline& deadline_;
  std::unique_ptr<pcre2_match_context, FreeContext> context_;
  std::unique_ptr<pcre2_match_data, FreeData> data_;
  size_t num_searches_ = 0;
};

}  // namespace

Expression::Expression(const std::string& pattern) {
  if (pattern.size() > kMaxWrittenPattern) throw std::runtime_error("it is too long");
  int error = 0;
  PCRE2_SIZE where = 0;
  const uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_USE_OFFSET_LIMIT |
                           PCRE2_NEVER_BACKSLASH_C | PCRE2_NO_AUTO_CAPTURE;
  const std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> context(
      pcre2_compile_context_create(nullptr), pcre2_compile_context_free);
  if (!context) throw std::bad_alloc();
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                   options, &error, &where, context.get());
  if (!code) throw std::runtime_error(message_of(error));
  code_.reset(code);
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // without JIT support it is interpreted
}

std::vector<Match> Expression::matches(std::string_view text, const Deadline& deadline) const {
  std::vector<Match> found;
  Search search(code_of(code_.get()), text, deadline);
  Match match{};
  size_t from = 0;
  while (from <= text.size() && search.find(from, match)) {
    from = match.end;
    if (match.start == match.end && !found.empty() && found.back().end == match.end) {
      from += match.end < text.size() ? utf8_length(text[match.end]) : 1;
    } else {
      found.push_back(match);
    }
  }
  return found;
}

void Expression::Free::operator()(void* code) const {
  pcre2_code_free(static_cast<pcre2_code*>(code));
}

std::string literal_pattern(std::string_view text) {
  std::string pattern;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    const bool is_plain = byte >= 0x80 || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') ||
                          (c >= 'A' && c <= 'Z') || byte <= 0x20;
    if (!is_plain) pattern.push_back('\\');
    pattern.push_back(c);
  }
  return pattern;
}

}  // namespace bita
