// Search for token strings in a text.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace bita {

// Finds token strings from left to right, at each position the longest one. The strings are sorted,
// so those that begin with the bytes read so far form a range that narrows with each byte.
class TokenMatcher {
 public:
  struct Found {
    size_t start;
    size_t end;
    uint32_t value;
  };

  // Adds a non-empty text. Of equal texts the first one counts.
  void add(std::string text, uint32_t value);

  // Sorts the texts. Call it once all of them are added.
  void prepare();

  // Returns the first match that begins at `from` or later.
  std::optional<Found> find(std::string_view text, size_t from) const;

  // Returns the longest match that begins at `start`.
  std::optional<Found> at(std::string_view text, size_t start) const;

 private:
  struct Entry {
    std::string text;
    uint32_t value;
    size_t order;  // of insertion
  };

  std::vector<Entry> entries_;
  std::array<bool, 256> begins_{};  // whether an entry begins with this byte
};

}  // namespace bita
