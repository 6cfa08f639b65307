// Unicode normal forms and lower case, equal to those of the `tokenizers` package.
#pragma once

#include <string>
#include <string_view>

namespace bita {

enum class UnicodeForm { kNfc, kNfd, kNfkc, kNfkd };

// Appends the text in a normal form. Here the package knows the characters of Unicode 9; later
// characters that have a normal form, or that are marks with an order, stay unchanged.
void append_in_form(std::string_view text, UnicodeForm form, std::string& result);

// Appends the text in lower case, character by character.
void append_lowercase(std::string_view text, std::string& result);

}  // namespace bita
