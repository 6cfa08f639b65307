// Reads JSON from files of unknown origin with limits, accesses fields by name and type, and quotes
// values in messages.
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

// Parses a JSON text. Throws std::runtime_error that says where it is invalid, or that it is nested
// more than kMaxJsonDepth deep.
Json parse_json(std::string_view text);

// Reads the object in a JSON file. Throws a Fault of `kind` that names the file and ends with
// `fix`.
Json read_json_object(const std::filesystem::path& path, FaultKind kind, const std::string& fix,
                      uint64_t max_bytes);

// Returns a value for a message: in Python's notation, on one line, cut after 60 characters.
std::string shown(const Json& value);
std::string shown(const std::string& text);

// Accesses the fields of an object by name and type, and collects what is wrong with them in
// `faults`. A missing field returns the default `otherwise`, or is a fault if there is none. After
// a fault a function returns an arbitrary value of its type.
class Fields {
 public:
  // prefix: precedes the names in messages, such as "plan.". The object must outlive this.
  Fields(const Json& object, std::string prefix, std::vector<std::string>& faults)
      : object_(object), prefix_(std::move(prefix)), faults_(faults) {}

  bool has(const std::string& key) const { return object_.contains(key); }
  // Returns the value of a key that must exist.
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
  // Returns an object, empty after a fault.
  Json table(const std::string& key, bool is_optional = false);
  void add_fault(const std::string& fault) { faults_.push_back(prefix_ + fault); }

 private:
  // Returns the value or nullptr. A missing value is a fault unless `is_optional`.
  const Json* find(const std::string& key, bool is_optional, const std::string& what);
  void add_type_fault(const std::string& key, const Json& value, const std::string& what);

  const Json& object_;
  const std::string prefix_;
  std::vector<std::string>& faults_;
};

}  // namespace bita
