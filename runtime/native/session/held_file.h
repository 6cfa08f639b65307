// A file that a library has mapped into memory, held open to detect writes to it.
#pragma once

#include <sys/stat.h>

#include <filesystem>
#include <string>
#include <tuple>

namespace bita {

// Replacing the file does no harm: whoever has the old one open keeps it. But writes to the old
// file are visible to all who have mapped it. `check` is called before and after each use, so that
// other content has no effect; only truncating the file while it is read can still crash the
// process.
class HeldFile {
 public:
  // digest: sha256 of its content. Throws a Fault if it cannot be opened.
  HeldFile(std::filesystem::path path, std::string digest);
  ~HeldFile();
  HeldFile(const HeldFile&) = delete;
  HeldFile& operator=(const HeldFile&) = delete;

  // Throws a Fault unless it is still the file at its path; called after the library has loaded
  // that.
  void check_loaded();
  // Throws a Fault if its content changed. Takes a microsecond; if only its times or links changed,
  // it is hashed again.
  void check();

 private:
  // Size, and the times of the last change of its content and of its status, in nanoseconds.
  using State = std::tuple<int64_t, int64_t, int64_t>;
  State state() const;

  std::filesystem::path path_;
  std::string digest_;
  int descriptor_;
  State seen_;
};

}  // namespace bita
