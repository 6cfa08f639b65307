// Fields of the rules in a tokenizer.json.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "../base/json.h"
#include "expression.h"

namespace bita {

// All throw std::runtime_error that names the rule and the field. Without `other` a field must be
// there.
const Json& field(const Json& rule, const char* name);
std::string text_field(const Json& rule, const char* name);
bool flag_field(const Json& rule, const char* name, std::optional<bool> other = std::nullopt);

// The "type" of a rule.
std::string type_of(const Json& rule);

// The rules of a part of the file, those of nested sequences in their place. Throws
// std::runtime_error if there are too many.
// children: the field of a sequence that holds its rules.
std::vector<Json> flat_rules(const Json& part, const char* children);

// The expression of {"String": ...} or {"Regex": ...} in the field `pattern`.
// Throws std::runtime_error for an expression that is not supported.
Expression pattern_field(const Json& rule);

// Calls `read` for each rule, and adds to `faults` what it throws, with `part` before it.
void read_rules(const std::vector<Json>& rules, const std::string& part,
                std::vector<std::string>& faults, const std::function<void(const Json&)>& read);

}  // namespace bita
