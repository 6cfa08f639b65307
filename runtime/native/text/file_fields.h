// Access to the fields of the rules in a tokenizer.json.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "../base/json.h"
#include "expression.h"

namespace bita {

// Return the value of a field. Throw std::runtime_error that names the rule and the field. `other`
// is the value of a missing field; without it the field is required.
const Json& field(const Json& rule, const char* name);
std::string text_field(const Json& rule, const char* name);
bool flag_field(const Json& rule, const char* name, std::optional<bool> other = std::nullopt);

// Returns the "type" of a rule.
std::string type_of(const Json& rule);

// Returns the rules of a part of the file, with nested sequences flattened. Throws
// std::runtime_error if there are too many. children: the name of the field that holds the rules of
// a sequence.
std::vector<Json> flat_rules(const Json& part, const char* children);

// Compiles the {"String": ...} or {"Regex": ...} in the field `pattern`. Throws std::runtime_error
// if it is not supported.
Expression pattern_field(const Json& rule);

// Calls `read` for each rule. Adds what it throws to `faults`, prefixed by `part` and the rule's
// type.
void read_rules(const std::vector<Json>& rules, const std::string& part,
                std::vector<std::string>& faults, const std::function<void(const Json&)>& read);

}  // namespace bita
