#include "token_matcher.h"

#include <algorithm>
#include <utility>

namespace bita {

void TokenMatcher::add(std::string text, uint32_t value) {
  begins_[static_cast<unsigned char>(text[0])] = true;
  entries_.push_back({std::move(text), value, entries_.size()});
}

void TokenMatcher::prepare() {
  std::sort(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) {
    const int order = a.text.compare(b.text);
    return order != 0 ? order < 0 : a.order < b.order;
  });
  const auto end = std::unique(entries_.begin(), entries_.end(),
                               [](const Entry& a, const Entry& b) { return a.text == b.text; });
  entries_.erase(end, entries_.end());
  entries_.shrink_to_fit();
}

std::optional<TokenMatcher::Found> TokenMatcher::find(std::string_view text, size_t from) const {
  if (entries_.empty()) return std::nullopt;
  for (size_t start = from; start < text.size(); ++start) {
    if (!begins_[static_cast<unsigned char>(text[start])]) continue;
    if (const auto found = at(text, start)) return found;
  }
  return std::nullopt;
}

std::optional<TokenMatcher::Found> TokenMatcher::at(std::string_view text, size_t start) const {
  std::optional<Found> longest;
  auto first = entries_.begin();
  auto last = entries_.end();
  for (size_t length = 0; first != last; ++length) {
    if (first->text.size() == length) {  // shorter texts are sorted before their continuations
      if (length > 0) longest = Found{start, start + length, first->value};
      ++first;
    }
    if (start + length == text.size()) break;
    const char byte = text[start + length];
    const auto comes_before = [length](const Entry& entry, unsigned char value) {
      return static_cast<unsigned char>(entry.text[length]) < value;
    };
    const auto comes_after = [length](unsigned char value, const Entry& entry) {
      return value < static_cast<unsigned char>(entry.text[length]);
    };
    first = std::lower_bound(first, last, static_cast<unsigned char>(byte), comes_before);
    last = std::upper_bound(first, last, static_cast<unsigned char>(byte), comes_after);
  }
  return longest;
}

}  // namespace bita
