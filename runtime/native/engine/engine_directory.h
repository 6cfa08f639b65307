// The engine directory: everything that is copied from the build machine to the device.
#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "manifest.h"

namespace bita {

struct FileEntry {
  int64_t num_bytes = 0;
  std::string sha256;
};

// A checked engine directory, of which nothing is loaded yet.
struct EngineDirectory {
  std::filesystem::path path;
  Manifest manifest;
  std::map<std::string, FileEntry> files;

  std::filesystem::path file(const std::string& name) const { return path / name; }
  bool has(const std::string& name) const { return files.count(name) != 0; }
};

// Check a directory in the same way as `bita.engine.open_engine`. Throws one Fault that lists
// everything that is wrong.
//
// checks_weights: also hash the weights, which takes about a second per GB; other files are always
// hashed.
EngineDirectory open_directory(const std::filesystem::path& path, bool checks_weights);

}  // namespace bita
