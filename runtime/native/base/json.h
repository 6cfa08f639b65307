// JSON from files of unknown origin: read with limits, taken by name and type, shown in messages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "fault.h"

namespace bita {

using Json = nlohmann::json;

constexpr size_t kMaxJsonDepth = 100;
constexpr int64_t kMaxIndex = std::numeric_limits<int64_t>::max();
constexpr double kMaxFloat = std::numeric_limits<float>::max();

// The value of a JSON text. Throws std::runtime_error that says where it is broken, also for one
// that is nested more than kMaxJsonDepth deep.
Json parse_json(std::string_view text);

// The object in a JSON file. Throws a Fault of `kind` that names the file and ends with `fix`.
Json read_json_object(const std::filesystem::path& path, FaultKind kind, const std::string& fix,
                      uint64_t max_bytes);

// A value as a message quotes it: as Python writes it, on one line, cut after 60 characters.
std::string shown(const Json& value);
std::string shown(const std::string& text);

// The values of an object by name and type; `faults` lists what is wrong with them. A value that
// is absent gives the default, and is a fault where there is none; after a fault a function gives
// some value of its type.
class Fields {
 public:
  // prefix: what messages put before the names, such as "plan.". The object has to live on.
  Fields(const Json& object, std::string prefix, std::vector<std::string>& faults)
      : object_(object), prefix_(std::move(prefix)), faults_(faults) {}

  bool has(const std::string& key) const { return object_.contains(key); }
  // The value of a key, which has to be there.
  const Json& at(const std::string& key) const { return object_.at(key); }
  int64_t whole(const std::string& key, int64_t least, int64_t most,
                std::optional<int64_t> otherwise = std::nullopt);
  double number(const std::string& key, double least, double most,
                std::optional<double> otherwise = std::nullopt);
  std::string text(const std::string& key,
                   const std::optional<std::string>& otherwise = std::nullopt);
  std::vector<int64_t> wholes(const std::string& key, int64_t least, int64_t most,
                              const std::optional<std::vector<int64_t>>& otherwise = std::nullopt);
  std::vector<double> numbers(const std::string& key, double least, double most,
                              const std::optional<std::vector<double>>& otherwise = std::nullopt);
  // An object; an empty one after a fault.
  Json table(const std::string& key, bool is_optional = false);
  void add_fault(const std::string& fault) { faults_.push_back(prefix_ + fault); }

 private:
  // The value, or null and a fault unless `is_optional`.
  const Json* find(const std::string& key, bool is_optional, const std::string& what);
  void add_type_fault(const std::string& key, const Json& value, const std::string& what);

  const Json& object_;
  const std::string prefix_;
  std::vector<std::string>& faults_;
};

}  // namespace bita
