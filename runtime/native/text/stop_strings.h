// Strings at which a text ends.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace bita {

constexpr size_t kMaxStopStrings = 16;      // each is searched for once per token
constexpr size_t kMaxStopCharacters = 256;  // as much text may have to be held back

// Why these cannot be stop strings; empty if they can.
std::vector<std::string> stop_faults(const std::vector<std::string>& stops);

// Finds the first of some stop strings in a text that comes in pieces.
//
// The string that ends first counts; of those that end at the same character the longest. That is
// the same however the text is cut into pieces, each of whole characters. Cost per piece: one
// search per stop string.
class StopStrings {
 public:
  // marked: more strings to stop at, which are found as they are.
  // Throws Fault(kPrompt), listing all faults, if a stop string is empty, too long or not UTF-8.
  explicit StopStrings(const std::vector<std::string>& stops,
                       const std::vector<std::string>& marked = {});

  // Adds text; returns what of all text so far is new and certainly shown.
  //
  // When a stop string is complete, it is `found`, the text before it is returned, and all that
  // follows is dropped.
  std::string push(std::string_view piece);

  // Ends the text; returns what was held back and turned out to begin no stop string.
  std::string flush();

  // The stop string that ended the text, or nullptr.
  const std::string* found() const { return is_found() ? &stops_[found_] : nullptr; }

 private:
  static constexpr size_t kNone = SIZE_MAX;

  bool is_found() const { return found_ != kNone; }
  size_t find(std::string_view text);
  size_t num_held(std::string_view text) const;

  std::vector<std::string> stops_;
  size_t found_ = kNone;  // index of a stop string
  size_t longest_ = 0;    // bytes of the longest beginning that is not a whole stop string
  std::string held_;      // the longest end of the text that may begin a stop string
};

}  // namespace bita
