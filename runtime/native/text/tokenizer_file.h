// Reads a tokenizer.json, and refuses a broken or hostile one.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer_parts.h"

namespace bita {

// Reads the content of a tokenizer.json.
//
// Throws std::runtime_error if it is not a tokenizer. Adds unsupported features to `faults`; the
// parts are then unusable.
std::unique_ptr<TokenizerParts> read_tokenizer_file(std::string_view json,
                                                    std::vector<std::string>& faults);

}  // namespace bita
