#include "files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>

namespace bita {

namespace {

// An open file, closed at the end.
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

// Bytes of the character that begins with these, 0 for what is none.
size_t length_of_character(const unsigned char* bytes, size_t count) {
  const unsigned char first = bytes[0];
  if (first < 0x80) return 1;
  const size_t length = first >= 0xC2 && first < 0xE0   ? 2
                        : first >= 0xE0 && first < 0xF0 ? 3
                        : first >= 0xF0 && first < 0xF5 ? 4
                                                        : 0;
  if (length == 0 || length > count) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((bytes[i] & 0xC0) != 0x80) return 0;
  }
  const bool is_overlong = (first == 0xE0 && bytes[1] < 0xA0) || (first == 0xF0 && bytes[1] < 0x90);
  const bool is_beyond = (first == 0xED && bytes[1] > 0x9F) || (first == 0xF4 && bytes[1] > 0x8F);
  return is_overlong || is_beyond ? 0 : length;
}

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
    if (count == 0) throw std::runtime_error("it was cut while it was read");
    place += static_cast<size_t>(count);
  }
  return content;
}

bool is_utf8(std::string_view text) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(text.data());
  for (size_t place = 0; place < text.size();) {
    const size_t length = length_of_character(bytes + place, text.size() - place);
    if (length == 0) return false;
    place += length;
  }
  return true;
}

std::string text_of(const fs::path& path) { return path.string(); }

}  // namespace bita
