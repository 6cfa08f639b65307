// The "model" of a tokenizer.json: vocabulary and merges, which are most of the file.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "bpe_model.h"

namespace bita {

// Reads the value of "model" from its text, without building a value of it.
//
// file: the whole text, which messages count the bytes of.
// Throws std::runtime_error for what is broken; what is not supported is added to `faults`.
void read_model(std::string_view json, std::string_view file, BpeModel& model,
                std::vector<std::string>& faults);

}  // namespace bita
