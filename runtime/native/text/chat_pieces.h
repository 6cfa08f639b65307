// The pieces of a chat template, read from chat_pieces.json with limits.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace bita {

constexpr size_t kNumRoles = 4;      // system, user, assistant, tool
constexpr size_t kNumFollowers = 3;  // what follows a message: nothing, others, user
constexpr size_t kSystem = 0, kUser = 1;
constexpr size_t kNothing = 0, kOthers = 1, kLaterUser = 2;

// Names of the roles, in the order of `State::roles`.
extern const std::array<std::string_view, kNumRoles> kRoleNames;

// The characters that are stripped from one end of a content: white space as in Python's `strip`,
// the characters listed, or none.
struct Taken {
  bool takes_spaces = false;
  std::vector<uint32_t> characters;

  bool has(uint32_t character) const;
};

// The characters that are stripped from both ends of a content.
struct Strip {
  Taken left, right;

  std::string_view of(std::string_view text) const;
};

// A fixed text, or the content of the first message.
struct Part {
  std::string text;
  std::optional<Strip> first;  // strips the first message's content; none: write `text`
};

// The text that is written for a message, or the refusal of it.
struct Piece {
  std::optional<size_t> refusal;  // index in `ChatPieces::refusals`
  std::vector<Part> before;       // text between the previous content and this one
  std::optional<Strip> content;   // none: write neither `before` nor the content
  std::string
      mark;   // if the content contains it, only the rest after its last occurrence is written
  Strip cut;  // strips that rest
  std::vector<std::string> uncovered;  // contents with one of these texts are refused
  bool covers_blank = true;            // whether contents of only white space are allowed
};

struct RoleEntry {
  std::array<Piece, kNumFollowers> pieces;
  size_t to = 0;  // index of the next state; unused if all pieces are refusals
};

// The text that is written after the last content, or a refusal.
struct End {
  std::optional<size_t> refusal;  // index in `ChatPieces::refusals`
  std::vector<Part> text;
};

// The state after some messages: pieces for the next one, and the two possible ends.
struct State {
  std::array<RoleEntry, kNumRoles> roles;
  End plain, prompt;  // without and with a generation prompt
};

struct ChatPieces {
  std::string reason;  // why there are no states; empty if there are some
  std::string template_sha256;
  std::string covers;            // describes the conversations for which the pieces are proved
  bool covers_developer = true;  // whether the role "developer" is read as "system"
  std::vector<std::string> refusals;
  std::vector<State> states;  // the first is the state before any message
};

// Parses chat_pieces.json. Throws Fault(kEngine) that lists every fault of `subject`.
ChatPieces parse_chat_pieces(std::string_view json, const std::string& subject);

// Returns whether Python's `str.strip` strips a character.
bool is_space(uint32_t character);

}  // namespace bita
