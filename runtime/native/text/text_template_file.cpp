#include <algorithm>
#include <cstddef>
#include <stdexcept>

#include "file_fields.h"
#include "rule_files.h"

namespace bita {

namespace {

constexpr size_t kMaxAddedIds = 256;     // added around a text
constexpr std::ptrdiff_t kMaxTexts = 4;  // occurrences of the text in the template

int32_t id_of(const Json& value) {
  if (value.is_number_unsigned() && value.get<uint64_t>() <= Vocabulary::kMaxId) {
    return static_cast<int32_t>(value.get<uint64_t>());
  }
  throw std::runtime_error(shown(value) + " is not an id");
}

const Json& ids_of(const Json& rule, const std::string& token) {
  const Json& tokens = field(rule, "special_tokens");
  if (!tokens.is_object() || !tokens.contains(token)) {
    throw std::runtime_error("special_tokens has no " + shown(token));
  }
  const Json& ids = field(tokens[token], "ids");
  if (!ids.is_array()) throw std::runtime_error("ids is " + shown(ids) + ", not a list");
  return ids;
}

void add_text(TextTemplate& text_template) {
  auto& ids = text_template.ids;
  if (std::count(ids.begin(), ids.end(), TextTemplate::kText) >= kMaxTexts) {
    throw std::runtime_error("it repeats a text more than " + std::to_string(kMaxTexts) + " times");
  }
  ids.push_back(TextTemplate::kText);
}

void add_id(TextTemplate& text_template, int32_t id) {
  if (text_template.ids.size() >= kMaxAddedIds) {
    throw std::runtime_error("it puts more than " + std::to_string(kMaxAddedIds) +
                             " tokens around a text");
  }
  text_template.ids.push_back(id);
}

TextTemplate read_template(const Json& rule) {
  TextTemplate text_template;
  text_template.ids.clear();
  const Json& single = field(rule, "single");
  if (!single.is_array()) throw std::runtime_error("single is not a list");
  for (const Json& item : single) {
    if (item.is_object() && item.contains("Sequence")) {
      if (text_field(item["Sequence"], "id") != "A") {
        throw std::runtime_error("single has a sequence other than A");
      }
      add_text(text_template);
    } else {
      const std::string token = text_field(field(item, "SpecialToken"), "id");
      for (const Json& id : ids_of(rule, token)) add_id(text_template, id_of(id));
    }
  }
  return text_template;
}

// Returns the id of ["token", id].
int32_t id_of_pair(const Json& rule, const char* name) {
  const Json& pair = field(rule, name);
  if (!pair.is_array() || pair.size() != 2) {
    throw std::runtime_error(std::string(name) + " is " + shown(pair));
  }
  return id_of(pair[1]);
}

}  // namespace

void read_text_template(const Json& part, TokenizerParts& parts, std::vector<std::string>& faults) {
  size_t num_templates = 0;
  read_rules(flat_rules(part, "processors"), "post_processor", faults, [&](const Json& rule) {
    const std::string type = type_of(rule);
    if (type == "ByteLevel") return;  // affects only offsets
    if (type == "TemplateProcessing") {
      parts.text_template = read_template(rule);
    } else if (type == "RobertaProcessing" || type == "BertProcessing") {
      parts.text_template.ids = {id_of_pair(rule, "cls"), TextTemplate::kText,
                                 id_of_pair(rule, "sep")};
    } else {
      throw std::runtime_error("it is not supported; choose another model");
    }
    if (++num_templates > 1) {
      throw std::runtime_error("a second one that adds tokens is not supported");
    }
  });
}

}  // namespace bita
