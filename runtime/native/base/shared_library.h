// Shared libraries opened at run time.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace bita {

// Returns Python's site-packages folder, assuming that this library is in the package `bita`.
std::filesystem::path packages_folder();

// A library that was opened by name, or the reasons why none was.
struct SharedLibrary {
  void* handle = nullptr;     // null: none of the names opened
  std::string name, reasons;  // reasons: one for each name that failed
};

// Opens the first of the names that can be opened. It stays open until the process ends, since its
// threads may still run when the last engine is freed.
SharedLibrary open_first(const std::vector<std::string>& names);

}  // namespace bita
