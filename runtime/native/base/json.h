// JSON from files of unknown origin: read with limits, and shown in messages.
#pragma once

#include <cstddef>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace bita {

using Json = nlohmann::json;

constexpr size_t kMaxJsonDepth = 100;

// The value of a JSON text. Throws std::runtime_error that says where it is broken, also for one
// that is nested more than kMaxJsonDepth deep.
Json parse_json(std::string_view text);

// A value as a message quotes it: JSON, cut to about 60 characters.
std::string shown(const Json& value);

}  // namespace bita
