#include "tokenizer_file.h"

#include <map>
#include <stdexcept>
#include <utility>

#include "json_reader.h"
#include "model_file.h"
#include "rule_files.h"
#include "slow_expressions.h"
#include "utf8.h"

namespace bita {

namespace {

using Sections = std::map<std::string, std::string_view>;

// Returns the text of each top-level value by name.
Sections read_sections(std::string_view json) {
  Sections sections;
  JsonReader reader(json);
  if (reader.peek() != '{') {
    const Json value = parse_json(json);
    throw std::runtime_error("it holds " + shown(value) + ", not an object");
  }
  reader.open('{');
  std::string_view key;
  while (reader.next_key(key)) {
    const std::string name(key);
    if (!sections.emplace(name, reader.skip()).second) {
      throw std::runtime_error("it has " + shown(name) + " twice");
    }
  }
  reader.end();
  return sections;
}

Json section(const Sections& sections, const char* name) {
  const auto found = sections.find(name);
  return found == sections.end() ? Json() : parse_json(found->second);
}

}  // namespace

std::unique_ptr<TokenizerParts> read_tokenizer_file(std::string_view json,
                                                    std::vector<std::string>& faults) {
  const size_t end = utf8_error(json);
  if (end < json.size()) {
    throw std::runtime_error("byte " + std::to_string(end + 1) + " is not UTF-8");
  }
  const Sections sections = read_sections(json);
  const auto model = sections.find("model");
  if (model == sections.end()) throw std::runtime_error("it has no model");
  auto parts = std::make_unique<TokenizerParts>();
  read_normalizer(section(sections, "normalizer"), *parts, faults);
  read_word_steps(section(sections, "pre_tokenizer"), *parts, faults);
  read_text_template(section(sections, "post_processor"), *parts, faults);
  parts->decoder = section(sections, "decoder");
  read_model(model->second, json, parts->model, faults);
  if (!faults.empty()) return parts;
  read_added_tokens(section(sections, "added_tokens"), *parts);
  check_speed(*parts, faults);
  return parts;
}

}  // namespace bita
