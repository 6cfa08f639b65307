// What an engine knows about ending and sampling answers: the file generation.json.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace bita {

// sampling: as the model's authors recommend it, by the names of options; empty where they do not.
struct GenerationDefaults {
  std::vector<int64_t> eos_ids;
  std::vector<int64_t> chat_eos_ids;  // of an answer to messages: ends of a turn first
  std::map<std::string, double> sampling;
};

// Throws a Fault that lists every bad value. vocab_size: V of the engine.
GenerationDefaults read_generation_defaults(const std::filesystem::path& path, int64_t vocab_size);

}  // namespace bita
