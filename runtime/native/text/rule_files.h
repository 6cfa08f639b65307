// The rules of a tokenizer.json, read into the parts of a tokenizer.
#pragma once

#include <string>
#include <vector>

#include "../base/json.h"
#include "tokenizer_parts.h"

namespace bita {

// Each throws std::runtime_error for what is broken, and adds to `faults` what is not supported.
void read_normalizer(const Json& part, TokenizerParts& parts, std::vector<std::string>& faults);
void read_word_steps(const Json& part, TokenizerParts& parts, std::vector<std::string>& faults);
void read_text_template(const Json& part, TokenizerParts& parts, std::vector<std::string>& faults);

// After the model and the normalizer.
void read_added_tokens(const Json& part, TokenizerParts& parts);

}  // namespace bita
