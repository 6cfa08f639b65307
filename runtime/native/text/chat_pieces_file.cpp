#include <algorithm>
#include <utility>

#include "../base/fault.h"
#include "../base/json.h"
#include "chat_pieces.h"
#include "utf8.h"

namespace bita {

namespace {

constexpr int64_t kFormat = 1;
constexpr size_t kMaxBytes = 4u << 20;  // of the file; typical files have 3 to 8 kB
constexpr size_t kMaxItems = 1000;      // per list in the file
constexpr size_t kMaxFaults = 100;      // collected; fewer are shown
constexpr std::array<std::string_view, kNumFollowers> kFollowerNames = {"nothing", "others",
                                                                        "user"};

// Reads the objects of the file. Adds everything that is wrong to `faults`, with its place.
class Reader {
 public:
  explicit Reader(std::vector<std::string>& faults) : faults_(faults) {}

  ChatPieces pieces(const Json& value);

 private:
  void add_fault(const std::string& fault) {
    if (faults_.size() < kMaxFaults) faults_.push_back(fault);
  }
  const Json* find(const Json& value, const std::string& place, const std::string& key);
  const Json& list(const Json& value, const std::string& place, const std::string& key);
  const Json& table(const Json& value, const std::string& place, const std::string& key);
  std::string text(const Json& value, const std::string& place, const std::string& key);
  bool flag(const Json& value, const std::string& place, const std::string& key);
  size_t index(const Json& value, const std::string& place, const std::string& key, size_t count);
  std::string sha256(const Json& value);
  State state(const Json& value, const std::string& place);
  RoleEntry role(const Json& value, const std::string& place);
  void add_piece(const Json& value, const std::string& place, RoleEntry& entry,
                 std::array<bool, kNumFollowers>& is_there);
  Piece piece(const Json& value, const std::string& place);
  End end(const Json& value, const std::string& place);
  std::vector<Part> parts(const Json& value, const std::string& place, const std::string& key);
  Strip strip(const Json& value, const std::string& place);
  Taken taken(const Json& value, const std::string& place, const std::string& key);

  std::vector<std::string>& faults_;
  size_t num_refusals_ = 0, num_states_ = 0;
};

const Json& no_list() {
  static const Json value = Json::array();
  return value;
}

const Json& no_table() {
  static const Json value = Json::object();
  return value;
}

const Json* Reader::find(const Json& value, const std::string& place, const std::string& key) {
  const auto found = value.find(key);
  if (found != value.end()) return &*found;
  add_fault(place + key + " is missing");
  return nullptr;
}

const Json& Reader::list(const Json& value, const std::string& place, const std::string& key) {
  const Json* found = find(value, place, key);
  if (!found) return no_list();
  if (found->is_array() && found->size() <= kMaxItems) return *found;
  add_fault(place + key + " is " + shown(*found) + ", not a list of up to " +
            std::to_string(kMaxItems) + " items");
  return no_list();
}

const Json& Reader::table(const Json& value, const std::string& place, const std::string& key) {
  const Json* found = find(value, place, key);
  if (!found) return no_table();
  if (found->is_object()) return *found;
  add_fault(place + key + " is " + shown(*found) + ", not an object");
  return no_table();
}

std::string Reader::text(const Json& value, const std::string& place, const std::string& key) {
  const Json* found = find(value, place, key);
  if (!found) return "";
  if (found->is_string()) return found->get<std::string>();
  add_fault(place + key + " is " + shown(*found) + ", not a text");
  return "";
}

bool Reader::flag(const Json& value, const std::string& place, const std::string& key) {
  const Json* found = find(value, place, key);
  if (!found) return true;
  if (found->is_boolean()) return found->get<bool>();
  add_fault(place + key + " is " + shown(*found) + ", not true or false");
  return true;
}

// Returns a number below `count`.
size_t Reader::index(const Json& value, const std::string& place, const std::string& key,
                     size_t count) {
  const Json* found = find(value, place, key);
  if (!found) return 0;
  if (found->is_number_unsigned() && found->get<uint64_t>() < count) return found->get<size_t>();
  add_fault(place + key + " is " + shown(*found) + ", not a whole number below " +
            std::to_string(count));
  return 0;
}

std::string Reader::sha256(const Json& value) {
  std::string found = text(value, "", "template_sha256");
  const bool is_hex = std::all_of(found.begin(), found.end(), [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
  });
  if (is_hex && found.size() == 64) return found;
  add_fault("template_sha256 is " + shown(found) + ", not 64 digits of hexadecimal");
  return "";
}

ChatPieces Reader::pieces(const Json& value) {
  ChatPieces found;
  const Json* format = find(value, "", "format");
  if (format && *format != Json(kFormat)) {
    add_fault("format is " + shown(*format) + ", not " + std::to_string(kFormat));
    return found;  // the other fields may mean anything
  }
  found.template_sha256 = sha256(value);
  if (value.contains("reason")) {
    found.reason = text(value, "", "reason");
    if (found.reason.empty()) add_fault("reason is empty");
    return found;
  }
  found.covers = text(value, "", "covers");
  found.covers_developer = flag(value, "", "covers_developer");
  for (const Json& each : list(value, "", "refusals")) {
    const std::string place = "refusals[" + std::to_string(found.refusals.size()) + "]";
    if (!each.is_object()) add_fault(place + " is " + shown(each) + ", not an object");
    found.refusals.push_back(each.is_object() ? text(each, place + ".", "message") : "");
    if (each.is_object()) flag(each, place + ".", "is_template");
  }
  const Json& states = list(value, "", "states");
  num_refusals_ = found.refusals.size();
  num_states_ = states.size();
  if (states.empty()) add_fault("states is empty");
  for (const Json& each : states) {
    const std::string place = "states[" + std::to_string(found.states.size()) + "]";
    if (!each.is_object()) add_fault(place + " is " + shown(each) + ", not an object");
    found.states.push_back(each.is_object() ? state(each, place + ".") : State());
  }
  return found;
}

State Reader::state(const Json& value, const std::string& place) {
  State found;
  const Json& roles = table(value, place, "roles");
  for (size_t i = 0; i < kNumRoles; ++i) {
    const std::string name(kRoleNames[i]);
    std::string inner = place + "roles.";
    const Json& entry = table(roles, inner, name);
    inner.append(name).append(".");
    found.roles[i] = role(entry, inner);
  }
  const Json& ends = table(value, place, "ends");
  found.plain = end(table(ends, place + "ends.", "plain"), place + "ends.plain.");
  found.prompt = end(table(ends, place + "ends.", "prompt"), place + "ends.prompt.");
  return found;
}

RoleEntry Reader::role(const Json& value, const std::string& place) {
  RoleEntry found;
  std::array<bool, kNumFollowers> is_there{};
  size_t count = 0;
  for (const Json& each : list(value, place, "pieces")) {
    const std::string inner = place + "pieces[" + std::to_string(count++) + "]";
    if (each.is_object()) {
      add_piece(each, inner + ".", found, is_there);
    } else {
      add_fault(inner + " is " + shown(each) + ", not an object");
    }
  }
  bool leads_on = false;
  for (size_t i = 0; i < kNumFollowers; ++i) {
    leads_on = leads_on || !found.pieces[i].refusal;
    if (is_there[i]) continue;
    add_fault(place + "pieces has none that is followed by '" + std::string(kFollowerNames[i]) +
              "'");
  }
  if (leads_on || value.contains("to")) found.to = index(value, place, "to", num_states_);
  return found;
}

// Stores a piece for the followers that it lists.
void Reader::add_piece(const Json& value, const std::string& place, RoleEntry& entry,
                       std::array<bool, kNumFollowers>& is_there) {
  const Piece found = piece(value, place);
  for (const Json& name : list(value, place, "followed_by")) {
    size_t i = 0;
    while (i < kNumFollowers && name != Json(kFollowerNames[i])) ++i;
    if (i == kNumFollowers) {
      add_fault(place + "followed_by has " + shown(name) + ", not 'nothing', 'others' or 'user'");
    } else if (is_there[i]) {
      add_fault(place + "followed_by has " + shown(name) + ", which an earlier piece has too");
    } else {
      is_there[i] = true;
      entry.pieces[i] = found;
    }
  }
}

Piece Reader::piece(const Json& value, const std::string& place) {
  Piece found;
  if (value.contains("refusal")) {
    found.refusal = index(value, place, "refusal", num_refusals_);
    return found;
  }
  if (value.contains("content")) {
    found.before = parts(value, place, "before");
    found.content = strip(table(value, place, "content"), place + "content.");
  }
  if (value.contains("after_mark")) {
    const Json& cut = table(value, place, "after_mark");
    found.mark = text(cut, place + "after_mark.", "mark");
    found.cut = strip(cut, place + "after_mark.");
    if (found.mark.empty()) add_fault(place + "after_mark.mark is empty");
  }
  if (value.contains("uncovered")) {
    for (const Json& each : list(value, place, "uncovered")) {
      if (each.is_string() && !each.get_ref<const std::string&>().empty()) {
        found.uncovered.push_back(each.get<std::string>());
      } else {
        add_fault(place + "uncovered has " + shown(each) + ", not a text");
      }
    }
  }
  if (value.contains("covers_blank")) found.covers_blank = flag(value, place, "covers_blank");
  return found;
}

End Reader::end(const Json& value, const std::string& place) {
  End found;
  if (value.contains("refusal")) {
    found.refusal = index(value, place, "refusal", num_refusals_);
  } else {
    found.text = parts(value, place, "text");
  }
  return found;
}

std::vector<Part> Reader::parts(const Json& value, const std::string& place,
                                const std::string& key) {
  std::vector<Part> found;
  for (const Json& each : list(value, place, key)) {
    const std::string inner = place + key + "[" + std::to_string(found.size()) + "]";
    Part part;
    if (each.is_string()) {
      part.text = each.get<std::string>();
    } else if (each.is_object()) {
      part.first = strip(table(each, inner + ".", "first"), inner + ".first.");
    } else {
      add_fault(inner + " is " + shown(each) + ", not a text or an object");
    }
    found.push_back(std::move(part));
  }
  return found;
}

Strip Reader::strip(const Json& value, const std::string& place) {
  return {taken(value, place, "left"), taken(value, place, "right")};
}

Taken Reader::taken(const Json& value, const std::string& place, const std::string& key) {
  Taken found;
  const auto side = value.find(key);
  if (side == value.end()) return found;
  if (*side == Json(true)) {
    found.takes_spaces = true;
  } else if (side->is_string()) {
    const auto& characters = side->get_ref<const std::string&>();
    for (size_t at = 0; at < characters.size(); at += utf8_length(characters[at])) {
      found.characters.push_back(code_point_at(characters, at));
    }
  } else {
    add_fault(place + key + " is " + shown(*side) + ", not a text or true");
  }
  return found;
}

// Returns the file's object, or null after a fault.
Json checked_json(std::string_view json, std::vector<std::string>& faults) {
  if (json.size() > kMaxBytes) {
    faults.push_back("it has " + std::to_string(json.size()) + " bytes; the limit is " +
                     std::to_string(kMaxBytes));
    return nullptr;
  }
  try {
    Json value = parse_json(json);
    if (value.is_object()) return value;
    faults.push_back("it holds " + shown(value) + ", not a JSON object");
  } catch (const std::runtime_error& error) {
    faults.push_back(std::string("it is not readable JSON (") + error.what() + ")");
  }
  return nullptr;
}

}  // namespace

ChatPieces parse_chat_pieces(std::string_view json, const std::string& subject) {
  std::vector<std::string> faults;
  ChatPieces found;
  const Json value = checked_json(json, faults);
  if (faults.empty()) found = Reader(faults).pieces(value);
  raise_faults(FaultKind::kEngine, subject + " (rebuild the engine)", faults);
  return found;
}

}  // namespace bita
