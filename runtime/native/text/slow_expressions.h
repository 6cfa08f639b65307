// Detection of regular expressions with excessive backtracking.
#pragma once

#include <string>
#include <vector>

#include "tokenizer_parts.h"

namespace bita {

// Adds a fault if the file's expressions take too long for a short text. Such an expression would
// take minutes for a page of text.
void check_speed(const TokenizerParts& parts, std::vector<std::string>& faults);

}  // namespace bita
