// A file mapped into memory, whose pages are read on access.
#pragma once

#include <cstddef>
#include <filesystem>

namespace bita {

class MappedFile {
 public:
  // Throws std::runtime_error if the file cannot be mapped.
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const char* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  const char* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace bita
