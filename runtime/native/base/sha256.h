// SHA-256 (FIPS 180-4).
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace bita {

// Returns the hex digest of bytes.
std::string sha256(std::string_view bytes);

// Returns the hex digest of a file, which is read in pieces. Throws std::runtime_error if it cannot
// be read.
std::string sha256_of_file(const std::filesystem::path& path);

}  // namespace bita
