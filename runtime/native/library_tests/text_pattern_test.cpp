#include <chrono>
#include <stdexcept>

#include "../tests/check.h"
#include "../text/expression.h"
#include "../text/expression_syntax.h"

namespace bita::tests {
namespace {

// Returns the matches of an Oniguruma expression, joined by |.
std::string found(const std::string& pattern, const std::string& text) {
  std::string all;
  const char* mark = "";
  const Deadline deadline(std::chrono::seconds(10));
  for (const Match& match : Expression(pcre2_pattern(pattern)).matches(text, deadline)) {
    all += mark + text.substr(match.start, match.end - match.start);
    mark = "|";
  }
  return all;
}

void classes_are_onigurumas() {
  expect(found(R"(\s)", "a\u180e\u0085b") == "\u0085", "U+180E is not a space");
  expect(found(R"([\w])", "\u00b2_") == "_", "a superscript is not a word character in [ ]");
  expect(found(R"(\w)", "\u00b2_") == "\u00b2|_", "but is one outside");
  expect(found(R"([^\S\n]+)", "a \t\n b") == " \t| ", "a complement in a complement");
  expect(found(R"(\h)", "g0F") == "0|F", "hexadecimal digits");
  expect(found(R"(\p{^L}\P{N})", "a1b") == "1b", "negations of properties");
  expect(found("^.", "a\nb") == "a|b", "lines");
  expect(found("(?i:'s)", "'S '\u017f") == "'S|'\u017f", "case, beyond ASCII too");
}

void quantifiers_are_onigurumas() {
  expect(found("a{2}+", "aaaaa") == "aaaa", "an interval with + is repeated");
  expect(found("a{,2}b", "aab b") == "aab|b", "up to two");
  expect(found("a++a", "aaa").empty(), "possessive");
  expect(found("b*", "abba") == "|bb|", "no empty match where one ends");
}

void what_may_differ_is_refused() {
  for (const char* pattern : {"(?i:stra\u00dfe)",
                              "(?i:ss)",
                              "[a&&b]",
                              "[[:alpha:]]",
                              "a(?i)b",
                              "(?m:.)",
                              "(a)\\1",
                              "\\X",
                              "\\R",
                              "\\K",
                              "a**",
                              "*",
                              "[",
                              "[]a]",
                              "a{2}?",
                              "a{",
                              "(",
                              ")",
                              "\\",
                              "\\p{Cn}",
                              "\\p{Greek",
                              "(?<n>a)",
                              "(?i:\\p{L})",
                              "\\xff",
                              "\\x{110000}",
                              "[b-a]",
                              "[a-\\w]"}) {
    bool is_refused = false;
    try {
      pcre2_pattern(pattern);
    } catch (const std::runtime_error&) {
      is_refused = true;
    }
    expect(is_refused, std::string(pattern) + " is refused");
  }
}

void slow_expressions_end() {
  for (const char* pattern : {"(?:a|a)*[bc]d", "a*a*a*a*a*[bc]d", "(?:a*)*[bc]d"}) {
    bool is_slow = false;
    try {
      Expression(pcre2_pattern(pattern))
          .matches(std::string(20000, 'a') + 'd', Deadline(std::chrono::milliseconds(200)));
    } catch (const TooSlow&) {
      is_slow = true;
    }
    expect(is_slow, std::string(pattern) + " is too slow");
  }
}

const Adds kClasses("text: classes", classes_are_onigurumas);
const Adds kQuantifiers("text: quantifiers", quantifiers_are_onigurumas);
const Adds kRefused("text: expressions that are refused", what_may_differ_is_refused);
const Adds kSlow("text: slow expressions", slow_expressions_end);

}  // namespace
}  // namespace bita::tests
