// A file that a library has mapped into memory, held open to see whether somebody writes to it.
#pragma once

#include <sys/stat.h>

#include <filesystem>
#include <string>
#include <tuple>

namespace bita {

// Another file in its place does no harm: who has the old one open keeps it. But what is written
// into the old one is seen by all who have it mapped. `check` is for before and after each use, so
// that nothing is made of other content; only a file that is cut while it is read can still kill.
class HeldFile {
 public:
  // digest: sha256 of its content. Throws a Fault if it cannot be opened.
  HeldFile(std::filesystem::path path, std::string digest);
  ~HeldFile();
  HeldFile(const HeldFile&) = delete;
  HeldFile& operator=(const HeldFile&) = delete;

  // Throws a Fault unless it is still the file at its path, for after that was loaded.
  void check_loaded();
  // Throws a Fault if its content changed. Cost: a microsecond; where only its times or links
  // changed it is hashed again.
  void check();

 private:
  // Size, and when content and anything else of it was changed, in nanoseconds.
  using State = std::tuple<int64_t, int64_t, int64_t>;
  State state() const;

  std::filesystem::path path_;
  std::string digest_;
  int descriptor_;
  State seen_;
};

}  // namespace bita
