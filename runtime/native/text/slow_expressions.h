// Regular expressions that try many ways to match.
#pragma once

#include <string>
#include <vector>

#include "tokenizer_parts.h"

namespace bita {

// Adds to `faults` if the file's expressions take too long for a short text. Such an expression
// takes minutes for a page of text.
void check_speed(const TokenizerParts& parts, std::vector<std::string>& faults);

}  // namespace bita
