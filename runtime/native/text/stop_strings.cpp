#include "stop_strings.h"

#include <algorithm>
#include <tuple>

#include "../base/fault.h"
#include "utf8.h"

namespace bita {

std::vector<std::string> stop_faults(const std::vector<std::string>& stops) {
  if (stops.size() > kMaxStopStrings) {
    return {"there are " + std::to_string(stops.size()) + "; give at most " +
            std::to_string(kMaxStopStrings)};
  }
  std::vector<std::string> faults;
  for (size_t i = 0; i < stops.size(); ++i) {
    const std::string number = "number " + std::to_string(i);
    if (!is_utf8(stops[i])) {
      faults.push_back(number + " is not UTF-8, which no text contains");
    } else if (stops[i].empty()) {
      faults.push_back(number + " is empty, which every text contains; leave it out");
    } else if (num_characters(stops[i]) > kMaxStopCharacters) {
      faults.push_back(number + " has " + std::to_string(num_characters(stops[i])) +
                       " characters; use at most " + std::to_string(kMaxStopCharacters));
    }
  }
  return faults;
}

StopStrings::StopStrings(const std::vector<std::string>& stops,
                         const std::vector<std::string>& marked) {
  raise_faults(FaultKind::kPrompt, "stop strings", stop_faults(stops));
  stops_ = stops;
  stops_.insert(stops_.end(), marked.begin(), marked.end());
  for (const std::string& stop : stops_) longest_ = std::max(longest_, stop.size() - 1);
}

std::string StopStrings::push(std::string_view piece) {
  if (is_found()) return "";
  std::string text = std::move(held_);
  held_.clear();
  text.append(piece);
  const size_t stop_start = find(text);
  if (is_found()) return text.substr(0, stop_start);
  const size_t shown = text.size() - num_held(text);
  held_ = text.substr(shown);
  text.resize(shown);
  return text;
}

std::string StopStrings::flush() {
  std::string held = std::move(held_);
  held_.clear();
  return held;
}

// Returns the start of the stop string that ends first, and sets `found_`.
size_t StopStrings::find(std::string_view text) {
  std::tuple<size_t, size_t> first{};  // end and start
  for (size_t i = 0; i < stops_.size(); ++i) {
    const size_t start = text.find(stops_[i]);
    if (start == std::string_view::npos) continue;
    const std::tuple<size_t, size_t> hit{start + stops_[i].size(), start};
    if (is_found() && first <= hit) continue;
    first = hit;
    found_ = i;
  }
  return std::get<1>(first);
}

// Returns the number of bytes at the end of a text that may begin a stop string. They start at a
// character: in UTF-8 a suffix of one text equals a prefix of another only if both are whole
// characters.
size_t StopStrings::num_held(std::string_view text) const {
  for (size_t length = std::min(longest_, text.size()); length > 0; --length) {
    const std::string_view end = text.substr(text.size() - length);
    for (const std::string& stop : stops_) {
      if (length < stop.size() && stop.compare(0, length, end) == 0) return length;
    }
  }
  return 0;
}

}  // namespace bita
