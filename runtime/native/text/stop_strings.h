// Strings that end a text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace bita {

constexpr size_t kMaxStopStrings = 16;      // each is searched for with every token
constexpr size_t kMaxStopCharacters = 256;  // up to this much text may have to be held back

// Returns why these are not valid stop strings; empty if they are.
std::vector<std::string> stop_faults(const std::vector<std::string>& stops);

// Finds the first of several stop strings in a text that arrives in pieces of whole characters.
//
// The string that ends first counts, and the longest of those that end at the same character. The
// result does not depend on the division into pieces. A piece costs one search per stop string.
class StopStrings {
 public:
  // marked: further strings to stop at, which are not validated.
  // Throws Fault(kPrompt), listing all faults, if a stop string is empty, too long or not UTF-8.
  explicit StopStrings(const std::vector<std::string>& stops,
                       const std::vector<std::string>& marked = {});

  // Adds text and returns the new part of the text that is certainly shown.
  //
  // Once a stop string is complete, it is `found`: the text before it is returned, and everything
  // after is dropped.
  std::string push(std::string_view piece);

  // Ends the text and returns the text that was held back, which began no stop string.
  std::string flush();

  // Returns the stop string that ended the text, or nullptr.
  const std::string* found() const { return is_found() ? &stops_[found_] : nullptr; }

 private:
  static constexpr size_t kNone = SIZE_MAX;

  bool is_found() const { return found_ != kNone; }
  size_t find(std::string_view text);
  size_t num_held(std::string_view text) const;

  std::vector<std::string> stops_;
  size_t found_ = kNone;  // index of a stop string
  size_t longest_ = 0;    // bytes of the longest proper prefix of a stop string
  std::string held_;      // longest suffix of the text that may begin a stop string
};

}  // namespace bita
