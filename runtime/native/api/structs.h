// Structs that callers give and get, of which an older header knows only the first fields.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>

#include "../base/fault.h"

namespace bita::api {

[[noreturn]] inline void misused(const std::string& message) {
  throw Fault(FaultKind::kUse, message);
}

template <class T>
void need(T* pointer, const char* name) {
  if (!pointer) misused(std::string(name) + " is NULL");
}

// The caller's options, with defaults for fields that its header did not have.
template <class Options>
Options completed(const Options* given, const Options& defaults, const char* name) {
  Options options = defaults;
  if (!given) return options;
  const size_t size = given->struct_size;
  if (size < sizeof(size_t) || size > (1u << 16)) {
    misused(std::string(name) + ".struct_size is " + std::to_string(size) +
            "; begin with the header's INIT macro for it");
  }
  std::memcpy(&options, given, std::min(size, sizeof(Options)));
  options.struct_size = sizeof(Options);
  return options;
}

// Fill a caller's struct as far as its header knows it.
template <class Result>
void give(const Result& filled, Result* target, const char* name) {
  need(target, name);
  const size_t size = target->struct_size;
  if (size < sizeof(size_t) || size > (1u << 16)) {
    misused(std::string(name) + "->struct_size is " + std::to_string(size) +
            "; set it to the size of the struct");
  }
  const size_t known = std::min(size, sizeof(Result));
  std::memcpy(reinterpret_cast<char*>(target) + sizeof(size_t),
              reinterpret_cast<const char*>(&filled) + sizeof(size_t), known - sizeof(size_t));
}

inline std::string text_or_empty(const char* text) { return text ? text : ""; }

inline int32_t checked_choice(int32_t value, int32_t most, const char* name) {
  if (value < 0 || value > most) {
    misused(std::string(name) + " is " + std::to_string(value) + ", not 0 to " +
            std::to_string(most));
  }
  return value;
}

}  // namespace bita::api
