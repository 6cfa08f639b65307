// Sets of characters, as PCRE2 writes what stands between [ and ].
//
// They are those of the `tokenizers` package (0.23), measured over all code points: its regular
// expressions, Oniguruma's, know Unicode 16, other parts of it know other versions. PCRE2 is the
// system's, from Unicode 14 (10.40) on, so what came later is written out. A PCRE2 that knows a
// later Unicode than 16 has some more letters, in scripts that no model was trained on. One
// difference is known: up to 10.42 PCRE2 has U+1171E in \p{Mn}, not in \p{Mc}.
#pragma once

#include <string>
#include <string_view>

namespace bita {

// Members of \p{NAME}: a general category such as L or Lu, or one of some scripts; "" if the name
// is not supported.
std::string property_members(std::string_view name);

// Members of \s, \w and \h (hexadecimal digits) in Oniguruma. Its \w has some superscripts and
// fractions too, but not between [ and ].
std::string space_members();
std::string word_members(bool in_set);
std::string hex_members();

// Regular expressions for PCRE2, of what the package finds without Oniguruma.
std::string rust_word();             // one character of a word
std::string rust_words_and_marks();  // words, and runs of what is neither word nor space
std::string numeric_character();
std::string punctuation_character();
std::string combining_mark();

}  // namespace bita
