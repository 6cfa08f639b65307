// Files of unknown origin, read whole and with limits.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace bita {

namespace fs = std::filesystem;

constexpr uint64_t kMaxObjectBytes = 16u << 20;  // of a file that becomes a tree of values

// The content of a regular file of at most `max_bytes`. A pipe or a device is refused before it is
// opened: reading one may wait forever. Throws std::runtime_error with half a sentence: "No such
// file or directory", "it is not a regular file".
std::string read_regular_file(const fs::path& path, uint64_t max_bytes);

// A path for a message.
std::string text_of(const fs::path& path);

}  // namespace bita
