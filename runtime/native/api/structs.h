// Copy structs from and to callers. A caller's header may be older and have only the first fields.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>

#include "../base/fault.h"

namespace bita::api {

[[noreturn]] inline void throw_misuse(const std::string& message) {
  throw Fault(FaultKind::kUse, message);
}

template <class T>
void need(T* pointer, const char* name) {
  if (!pointer) throw_misuse(std::string(name) + " is NULL");
}

// Return the caller's options, with defaults for the fields that its header does not have.
template <class Options>
Options complete(const Options* given, const Options& defaults, const char* name) {
  Options options = defaults;
  if (!given) return options;
  const size_t size = given->struct_size;
  if (size < sizeof(size_t) || size > (1u << 16)) {
    throw_misuse(std::string(name) + ".struct_size is " + std::to_string(size) +
                 "; initialize it with the header's INIT macro");
  }
  std::memcpy(&options, given, std::min(size, sizeof(Options)));
  options.struct_size = sizeof(Options);
  return options;
}

// Fill the fields of a caller's struct that its header has.
template <class Result>
void fill(const Result& filled, Result* target, const char* name) {
  need(target, name);
  const size_t size = target->struct_size;
  if (size < sizeof(size_t) || size > (1u << 16)) {
    throw_misuse(std::string(name) + "->struct_size is " + std::to_string(size) +
                 "; set it to the size of the struct");
  }
  const size_t known = std::min(size, sizeof(Result));
  std::memcpy(reinterpret_cast<char*>(target) + sizeof(size_t),
              reinterpret_cast<const char*>(&filled) + sizeof(size_t), known - sizeof(size_t));
}

inline std::string text_or_empty(const char* text) { return text ? text : ""; }

inline int32_t checked_choice(int32_t value, int32_t max, const char* name) {
  if (value < 0 || value > max) {
    throw_misuse(std::string(name) + " is " + std::to_string(value) + "; pass 0 to " +
                 std::to_string(max));
  }
  return value;
}

}  // namespace bita::api
