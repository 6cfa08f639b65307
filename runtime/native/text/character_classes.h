// Character classes in PCRE2's syntax, without the surrounding [ and ].
//
// The classes equal those of the `tokenizers` package (0.23), measured over all code points. Its
// regular expressions, Oniguruma's, know Unicode 16; other parts of it know other versions. PCRE2
// is the system's and knows at least Unicode 14 (10.40), so later characters are written out. A
// PCRE2 that knows a later Unicode than 16 has some more letters, in scripts that no model was
// trained on. One difference is known: up to 10.42 PCRE2 has U+1171E in \p{Mn}, not in \p{Mc}.
#pragma once

#include <string>
#include <string_view>

namespace bita {

// Returns the members of \p{NAME}, where NAME is a general category such as L or Lu, or one of a
// few scripts. "" if the name is not supported.
std::string property_members(std::string_view name);

// Return the members of Oniguruma's \s, \w and \h (hexadecimal digits). Outside of [ ] its \w also
// has some superscripts and fractions.
std::string space_members();
std::string word_members(bool in_set);
std::string hex_members();

// Return PCRE2 expressions for what the package matches without Oniguruma.
std::string rust_word();  // a character of a word
std::string
rust_words_and_marks();  // words, and runs of characters that are neither word nor space
std::string numeric_character();
std::string punctuation_character();
std::string combining_mark();

}  // namespace bita
