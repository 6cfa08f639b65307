#include "slow_expressions.h"

#include <chrono>

#include "../base/fault.h"
#include "utf8.h"

namespace bita {

namespace {

constexpr size_t kMaxProbes = 32;                   // letters tried
constexpr size_t kMaxLength = 256;                  // repetitions of each
constexpr std::chrono::milliseconds kMaxTime{100};  // a fast probe takes less than 1 ms

// Returns the letters to try: common ones and those in the expressions.
std::vector<std::string> letters_of(const std::vector<std::string>& expressions) {
  std::vector<std::string> letters;
  std::string all = " a1\n!\u00e9";
  for (const std::string& expression : expressions) all += expression;
  for (size_t at = 0; at < all.size() && letters.size() < kMaxProbes; at += utf8_length(all[at])) {
    const std::string letter = all.substr(at, utf8_length(all[at]));
    bool is_new = true;
    for (const std::string& known : letters) is_new = is_new && known != letter;
    if (is_new) letters.push_back(letter);
  }
  return letters;
}

bool is_fast(const TokenizerParts& parts, const std::string& text) {
  try {
    words_of(parts, text, Deadline(kMaxTime));
  } catch (const TooSlow&) {
    return false;
  } catch (const Fault&) {  // the text is refused for another reason
    return true;
  }
  return true;
}

}  // namespace

void check_speed(const TokenizerParts& parts, std::vector<std::string>& faults) {
  if (parts.expressions.empty()) return;
  const std::vector<std::string> letters = letters_of(parts.expressions);
  std::string end;  // some expressions only backtrack if a certain letter occurs in the text
  for (const std::string& letter : letters) end += letter;
  for (const std::string& letter : letters) {
    std::string run;
    for (size_t length = 1; length <= kMaxLength; ++length) {
      run += letter;
      const bool is_probe = length >= 16 && (length & (length - 1)) == 0;
      // a second try distinguishes slow expressions from a machine that is busy
      if (!is_probe || is_fast(parts, run + end) || is_fast(parts, run + end)) continue;
      faults.push_back("its regular expression takes too long for " + std::to_string(length) +
                       " repetitions of " + shown(letter) + "; simplify it");
      return;
    }
  }
}

}  // namespace bita
