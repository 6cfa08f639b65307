// A tokenizer.json, read so that a broken or hostile one is refused.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer_parts.h"

namespace bita {

// Reads the content of a tokenizer.json.
//
// Throws std::runtime_error for what is not a tokenizer. What is not supported is added to
// `faults`, and the parts are then of no use.
std::unique_ptr<TokenizerParts> read_tokenizer_file(std::string_view json,
                                                    std::vector<std::string>& faults);

}  // namespace bita
