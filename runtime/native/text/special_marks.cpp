#include "special_marks.h"

#include "utf8.h"

namespace bita {

namespace {

constexpr char kMarkLead = '\xFF';  // never occurs in UTF-8
constexpr size_t kMarkSize = 3;     // the lead, and a number of 12 bits in two bytes

}  // namespace

SpecialMarks::SpecialMarks(const std::vector<std::string>& stops, const TextCodec& codec) {
  for (const std::string& stop : stops) {
    std::string marked;
    bool has_mark = false;
    for (size_t at = 0; at < stop.size();) {
      const std::string_view special = codec.special_at(stop, at);
      const size_t length = special.empty() ? utf8_length(stop[at]) : special.size();
      marked += special.empty() ? stop.substr(at, length) : mark_of(special);
      has_mark = has_mark || !special.empty();
      at += length;
    }
    if (has_mark) stops_.push_back(marked);
  }
  if (marks_.empty()) return;
  for (const auto& [id, text] : codec.hidden_tokens()) {
    const auto found = marks_.find(text);
    if (found != marks_.end()) marks_by_id_.emplace(id, found->second);
  }
}

const std::string* SpecialMarks::mark(int32_t token_id) const {
  const auto found = marks_by_id_.find(token_id);
  return found == marks_by_id_.end() ? nullptr : &found->second;
}

std::string SpecialMarks::shown(std::string text) const {
  for (size_t at = text.find(kMarkLead); at != std::string::npos; at = text.find(kMarkLead, at)) {
    text.erase(at, kMarkSize);
  }
  return text;
}

const std::string& SpecialMarks::mark_of(std::string_view special) {
  const size_t number = marks_.size();  // at most 4095: 16 stop strings of 256 characters
  const std::string mark = {kMarkLead, static_cast<char>(0x80 | (number >> 6)),
                            static_cast<char>(0x80 | (number & 0x3F))};
  return marks_.emplace(special, mark).first->second;
}

}  // namespace bita
