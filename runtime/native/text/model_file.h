// Reads the "model" of a tokenizer.json: vocabulary and merges, which are most of the file.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "bpe_model.h"

namespace bita {

// Reads the value of "model" in a streaming way.
//
// json: the text of the value. file: the whole text; messages count bytes from its start.
// Throws std::runtime_error if the value is broken. Adds unsupported features to `faults`.
void read_model(std::string_view json, std::string_view file, BpeModel& model,
                std::vector<std::string>& faults);

}  // namespace bita
