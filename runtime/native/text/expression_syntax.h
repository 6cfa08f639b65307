// Translation of the regular expressions of a tokenizer.json to PCRE2.
#pragma once

#include <string>
#include <string_view>

namespace bita {

// Translates a pattern to PCRE2's syntax.
//
// pattern: UTF-8, in the syntax of Oniguruma, which the `tokenizers` package uses. The two differ
// in the members of their classes, in options, in {n}+ and in \h. Throws std::runtime_error that
// names the first construct that is not known to mean the same in both.
std::string pcre2_pattern(std::string_view pattern);

}  // namespace bita
