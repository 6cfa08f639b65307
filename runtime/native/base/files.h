// Reads whole files of unknown origin, with size limits.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace bita {

namespace fs = std::filesystem;

constexpr uint64_t kMaxObjectBytes = 16u << 20;  // of a file that is parsed into a tree of values

// Returns the content of a regular file of at most `max_bytes`. Pipes and devices are refused
// before they are read, since that may block forever. Throws std::runtime_error with a clause for a
// longer message: "No such file or directory", "it is not a regular file".
std::string read_regular_file(const fs::path& path, uint64_t max_bytes);

// Returns a path as text for a message.
std::string text_of(const fs::path& path);

}  // namespace bita
