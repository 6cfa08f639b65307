// Defaults for ending and sampling answers, from the engine's generation.json.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace bita {

// sampling: what the model's authors recommend, by name of option; empty without recommendations.
struct GenerationDefaults {
  std::vector<int64_t> eos_ids;
  std::vector<int64_t> chat_eos_ids;  // for answers to messages: ends of a turn first
  std::map<std::string, double> sampling;
};

// Throws a Fault that lists every bad value. vocab_size: V of the engine.
GenerationDefaults read_generation_defaults(const std::filesystem::path& path, int64_t vocab_size);

}  // namespace bita
