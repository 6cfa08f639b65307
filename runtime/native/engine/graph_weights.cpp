#include "graph_weights.h"

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <stdexcept>
#include <vector>

namespace bita {

namespace {

constexpr std::string_view kLocation = "location";  // key of a tensor's entry
constexpr int kMaxDepth = 100;                      // of nested messages, as in protobuf
constexpr int kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5;  // wire types of protobuf

enum class Kind {
  kModel,
  kTraining,
  kFunction,
  kGraph,
  kNode,
  kAttribute,
  kSparse,
  kTensor,
  kEntry
};

// Fields of onnx.proto that lead to tensors: number of the field, kind of its content.
const std::map<uint64_t, Kind>& parts_of(Kind kind) {
  static const std::map<Kind, std::map<uint64_t, Kind>> parts = {
      {Kind::kModel, {{7, Kind::kGraph}, {20, Kind::kTraining}, {25, Kind::kFunction}}},
      {Kind::kTraining, {{1, Kind::kGraph}, {2, Kind::kGraph}}},
      {Kind::kFunction, {{7, Kind::kNode}, {11, Kind::kAttribute}}},
      {Kind::kGraph, {{1, Kind::kNode}, {5, Kind::kTensor}, {15, Kind::kSparse}}},
      {Kind::kNode, {{5, Kind::kAttribute}}},
      {Kind::kAttribute,
       {{5, Kind::kTensor},
        {10, Kind::kTensor},
        {6, Kind::kGraph},
        {11, Kind::kGraph},
        {22, Kind::kSparse},
        {23, Kind::kSparse}}},
      {Kind::kSparse, {{1, Kind::kTensor}, {2, Kind::kTensor}}},
      {Kind::kTensor, {{13, Kind::kEntry}}},
      {Kind::kEntry, {}},
  };
  return parts.at(kind);
}

struct Field {
  uint64_t number = 0;
  int wire_type = 0;
  std::string_view content;  // for kBytes
};

// Reads the fields of a message one after the other.
class Reader {
 public:
  explicit Reader(std::string_view message) : message_(message) {}

  bool is_at_end() const { return place_ == message_.size(); }

  Field next() {
    const uint64_t tag = length_or_tag();
    Field field{tag >> 3, static_cast<int>(tag & 7), {}};
    if (field.wire_type == kBytes) {
      field.content = take(length_or_tag());
    } else if (field.wire_type == kVarint) {
      skip_number();
    } else if (field.wire_type == kFixed64 || field.wire_type == kFixed32) {
      take(field.wire_type == kFixed64 ? 8 : 4);
    } else {
      throw std::runtime_error("byte " + std::to_string(place_) + " does not start a field");
    }
    return field;
  }

 private:
  std::string_view take(uint64_t count) {
    if (count > message_.size() - place_) throw std::runtime_error("it is cut off");
    const std::string_view taken = message_.substr(place_, count);
    place_ += count;
    return taken;
  }

  // Rejects encodings that are longer than necessary, since readers interpret them differently; no
  // library writes them.
  uint64_t length_or_tag() {
    uint64_t value = 0;
    for (int shift = 0; shift < 35 && place_ < message_.size(); shift += 7) {
      const auto byte = static_cast<unsigned char>(message_[place_++]);
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte >= 0x80) continue;
      if (value >> 32 || (byte == 0 && shift > 0)) break;
      return value;
    }
    throw std::runtime_error("byte " + std::to_string(place_) +
                             " is not part of a valid tag or length");
  }

  void skip_number() {
    for (int i = 0; i < 10 && place_ < message_.size(); ++i) {
      if (static_cast<unsigned char>(message_[place_++]) < 0x80) return;
    }
    throw std::runtime_error("byte " + std::to_string(place_) + " does not start a number");
  }

  std::string_view message_;
  size_t place_ = 0;
};

// Add the values of an entry if one of its keys is the location; of several values the last would
// count.
void add_values(std::string_view entry, std::set<std::string>& locations) {
  bool is_location = false;
  std::vector<std::string> values;
  for (Reader reader(entry); !reader.is_at_end();) {
    const Field field = reader.next();
    if (field.number == 1 && field.content == kLocation) is_location = true;
    if (field.number == 2) values.emplace_back(field.content);
  }
  if (is_location) locations.insert(values.begin(), values.end());
}

}  // namespace

std::set<std::string> weight_locations(std::string_view graph) {
  struct Message {
    Kind kind;
    std::string_view content;
    int depth;
  };
  std::set<std::string> locations;
  std::vector<Message> messages = {{Kind::kModel, graph, 0}};
  const std::boyer_moore_horspool_searcher searcher(kLocation.begin(), kLocation.end());
  while (!messages.empty()) {
    const Message message = messages.back();
    messages.pop_back();
    if (message.depth > kMaxDepth) throw std::runtime_error("it is nested too deeply");
    if (message.kind == Kind::kEntry) {
      add_values(message.content, locations);
      continue;
    }
    const auto& parts = parts_of(message.kind);
    for (Reader reader(message.content); !reader.is_at_end();) {
      const Field field = reader.next();
      const auto part = parts.find(field.number);
      if (part == parts.end() || field.wire_type != kBytes) continue;
      // any location further down is contiguous within these bytes
      if (std::search(field.content.begin(), field.content.end(), searcher) !=
          field.content.end()) {
        messages.push_back({part->second, field.content, message.depth + 1});
      }
    }
  }
  return locations;
}

}  // namespace bita
