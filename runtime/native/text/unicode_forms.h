// Unicode's normal forms and lower case, as the `tokenizers` package has them.
#pragma once

#include <string>
#include <string_view>

namespace bita {

enum class UnicodeForm { kNfc, kNfd, kNfkc, kNfkd };

// Appends the text in a normal form. The package knows the characters of Unicode 9 here; later
// ones that have another form, or that are marks with an order, stay as they are.
void append_in_form(std::string_view text, UnicodeForm form, std::string& result);

// Appends the text in lower case, each character by itself.
void append_lowercase(std::string_view text, std::string& result);

}  // namespace bita
