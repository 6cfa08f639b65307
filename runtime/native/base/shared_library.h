// Libraries that are opened while the process runs.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace bita {

// The folder of Python's packages, where this library lies in bita's.
std::filesystem::path packages_folder();

// A library by its name.
struct SharedLibrary {
  void* handle = nullptr;  // null: none of the names opened
  std::string name, reasons;
};

// The first of the names that opens. It stays open to the end of the process: its threads may run
// when the last engine is freed.
SharedLibrary open_first(const std::vector<std::string>& names);

}  // namespace bita
