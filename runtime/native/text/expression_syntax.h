// Regular expressions of a tokenizer.json, written for PCRE2.
#pragma once

#include <string>
#include <string_view>

namespace bita {

// The same expression in PCRE2's syntax.
//
// pattern: UTF-8, in the syntax of Oniguruma, which the `tokenizers` package uses. The two differ
// in what their classes have in them, in options, in {n}+ and in \h; what is not known to be the
// same is refused: throws std::runtime_error that names it.
std::string pcre2_pattern(std::string_view pattern);

}  // namespace bita
