// Finds strings of tokens in a text.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace bita {

// From the left, always the longest string that begins at a place. The strings lie sorted: those
// that begin with what was read so far are a range that gets narrower with each byte.
class TokenMatcher {
 public:
  struct Found {
    size_t start;
    size_t end;
    uint32_t value;
  };

  // text: not empty. Of equal texts the first one counts.
  void add(std::string text, uint32_t value);

  // To be called when all were added.
  void prepare();

  // The first string that begins at `from` or later.
  std::optional<Found> find(std::string_view text, size_t from) const;

  // The longest string that begins at `start`.
  std::optional<Found> at(std::string_view text, size_t start) const;

 private:
  struct Entry {
    std::string text;
    uint32_t value;
    size_t order;  // in which they were added
  };

  std::vector<Entry> entries_;
  std::array<bool, 256> begins_{};  // whether an entry begins with this byte
};

}  // namespace bita
