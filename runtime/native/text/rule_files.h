// Reads the rules of a tokenizer.json into the parts of a tokenizer.
#pragma once

#include <string>
#include <vector>

#include "../base/json.h"
#include "tokenizer_parts.h"

namespace bita {

// Read one part of the file. Throw std::runtime_error if it is broken, and add unsupported features
// to `faults`.
void read_normalizer(const Json& part, TokenizerParts& parts, std::vector<std::string>& faults);
void read_word_steps(const Json& part, TokenizerParts& parts, std::vector<std::string>& faults);
void read_text_template(const Json& part, TokenizerParts& parts, std::vector<std::string>& faults);

// Reads the added tokens. Call it after the model and the normalizer are read.
void read_added_tokens(const Json& part, TokenizerParts& parts);

}  // namespace bita
