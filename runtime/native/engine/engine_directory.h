// The engine directory: the only thing that crosses from the build machine to the device.
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

// A checked engine directory; nothing of it is loaded.
struct EngineDirectory {
  std::filesystem::path path;
  Manifest manifest;
  std::map<std::string, FileEntry> files;

  std::filesystem::path file(const std::string& name) const { return path / name; }
  bool has(const std::string& name) const { return files.count(name) != 0; }
};

// Check a directory as `bita.engine.open_engine` does. Throws one Fault that lists what is wrong.
//
// checks_weights: hash the weights too, about a second for a GB; all other files always are.
EngineDirectory open_directory(const std::filesystem::path& path, bool checks_weights);

}  // namespace bita
