#include "files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>

namespace bita {

namespace {

// An open file descriptor, closed by the destructor.
class Descriptor {
 public:
  explicit Descriptor(int number) : number_(number) {}
  ~Descriptor() {
    if (number_ >= 0) close(number_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int number() const { return number_; }

 private:
  int number_;
};

[[noreturn]] void fail() { throw std::runtime_error(std::strerror(errno)); }

}  // namespace

std::string read_regular_file(const fs::path& path, uint64_t max_bytes) {
  const Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (file.number() < 0) fail();
  struct stat status = {};
  if (fstat(file.number(), &status) != 0) fail();
  if (!S_ISREG(status.st_mode)) throw std::runtime_error("it is not a regular file");
  const auto size = static_cast<uint64_t>(status.st_size);
  if (size > max_bytes) {
    throw std::runtime_error("it has " + std::to_string(size) + " bytes; at most " +
                             std::to_string(max_bytes) + " are read");
  }
  std::string content(size, '\0');
  size_t place = 0;
  while (place < content.size()) {
    const ssize_t count = read(file.number(), content.data() + place, content.size() - place);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail();
    if (count == 0) throw std::runtime_error("it was truncated while it was read");
    place += static_cast<size_t>(count);
  }
  return content;
}

std::string text_of(const fs::path& path) { return path.string(); }

}  // namespace bita
