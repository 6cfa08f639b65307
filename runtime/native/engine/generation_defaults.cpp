#include "generation_defaults.h"

#include <algorithm>

#include "../base/files.h"
#include "../base/json.h"

namespace bita {

namespace {

constexpr int64_t kMaxTokenId = (int64_t{1} << 31) - 1;
constexpr double kMinPositive = 1e-6;  // for numbers that must be above 0

// Read one of the recommended sampling options.
double take_number(Fields& fields, const std::string& name) {
  if (name == "top_k") return static_cast<double>(fields.whole(name, 0, kMaxTokenId));
  if (name == "top_p" || name == "min_p") return fields.number(name, 0.0, 1.0);
  const bool is_zero = fields.at(name).is_number() && fields.at(name).get<double>() == 0;
  if (name == "temperature" && is_zero) return 0.0;
  return fields.number(name, kMinPositive, kMaxFloat);
}

std::map<std::string, double> take_sampling(const Json& table, std::vector<std::string>& faults) {
  static const std::vector<std::string> known = {"temperature", "top_k", "top_p", "min_p",
                                                 "repetition_penalty"};
  std::map<std::string, double> numbers;
  Fields fields(table, "sampling.", faults);
  for (const auto& [name, value] : table.items()) {
    if (std::find(known.begin(), known.end(), name) == known.end()) {
      faults.push_back("sampling." + name +
                       " is not one of temperature, top_k, top_p, min_p, repetition_penalty");
    } else {
      numbers[name] = take_number(fields, name);
    }
  }
  const auto top_p = numbers.find("top_p");
  const bool is_greedy = numbers["temperature"] == 0 || (top_p != numbers.end() && !top_p->second);
  return is_greedy ? std::map<std::string, double>() : numbers;
}

void add_new(const std::vector<int64_t>& ids, std::vector<int64_t>& all) {
  for (const int64_t id : ids) {
    if (std::find(all.begin(), all.end(), id) == all.end()) all.push_back(id);
  }
}

}  // namespace

GenerationDefaults read_generation_defaults(const fs::path& path, int64_t vocab_size) {
  const Json data =
      read_json_object(path, FaultKind::kEngine, "rebuild the engine", kMaxObjectBytes);
  std::vector<std::string> faults;
  Fields fields(data, "", faults);
  GenerationDefaults defaults;
  defaults.eos_ids = fields.wholes("eos_ids", 0, kMaxTokenId);
  const Json tokens = fields.table("special_tokens");
  for (const auto& [name, text] : tokens.items()) {
    if (!text.is_string()) {
      faults.push_back("special_tokens." + name + " is " + shown(text) + ", not a text");
    }
  }
  defaults.sampling = take_sampling(fields.table("sampling", true), faults);
  add_new(fields.wholes("turn_end_ids", 0, kMaxTokenId, std::vector<int64_t>()),
          defaults.chat_eos_ids);
  raise_faults(FaultKind::kEngine, text_of(path) + " is broken; rebuild the engine", faults);
  add_new(defaults.eos_ids, defaults.chat_eos_ids);
  for (const int64_t id : defaults.eos_ids) {
    if (id >= vocab_size) {
      faults.push_back("eos id " + std::to_string(id) + " is not in [0, " +
                       std::to_string(vocab_size) + "), the model's vocabulary");
    }
  }
  raise_faults(FaultKind::kEngine, text_of(path) + "; rebuild the engine", faults);
  return defaults;
}

}  // namespace bita
