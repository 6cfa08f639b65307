// A chat template as pieces: what chat_pieces.json holds, read with limits.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace bita {

constexpr size_t kNumRoles = 4;      // system, user, assistant, tool
constexpr size_t kNumFollowers = 3;  // nothing, others, user: what follows a message
constexpr size_t kSystem = 0, kUser = 1;
constexpr size_t kNothing = 0, kOthers = 1, kLaterUser = 2;

// The roles in the order of `State::roles`.
extern const std::array<std::string_view, kNumRoles> kRoleNames;

// What is taken off one end of a content: white space as Python's `strip` takes it, these
// characters, or nothing.
struct Taken {
  bool takes_spaces = false;
  std::vector<uint32_t> characters;

  bool has(uint32_t character) const;
};

// How a content is written: without some characters at its ends.
struct Strip {
  Taken left, right;

  std::string_view of(std::string_view text) const;
};

// A text, or the content of the first message.
struct Part {
  std::string text;
  std::optional<Strip> first;
};

// What is written for a message in one place, or the refusal that stands there.
struct Piece {
  std::optional<size_t> refusal;
  std::vector<Part> before;      // from the content that was written last
  std::optional<Strip> content;  // none: the content is left out, with `before`
  std::string mark;  // where the content holds it, what follows its last occurrence is written,
  Strip cut;         // stripped so
  std::vector<std::string> uncovered;  // texts in contents that are refused
  bool covers_blank = true;            // whether contents of white space only are not refused
};

struct RoleEntry {
  std::array<Piece, kNumFollowers> pieces;
  size_t to = 0;  // the next state; not looked at where all pieces are refusals
};

// What is written after the last content.
struct End {
  std::optional<size_t> refusal;
  std::vector<Part> text;
};

// Where some messages lead to.
struct State {
  std::array<RoleEntry, kNumRoles> roles;
  End plain, prompt;  // without and with a generation prompt
};

struct ChatPieces {
  std::string reason;  // why there are no states; empty if there are
  std::string template_sha256;
  std::string covers;            // the conversations that the pieces were proved for, in words
  bool covers_developer = true;  // whether the role "developer" is read as "system"
  std::vector<std::string> refusals;
  std::vector<State> states;  // the first is the one without messages
};

// Throws Fault(kEngine) that lists every fault of `subject`.
ChatPieces parse_chat_pieces(std::string_view json, const std::string& subject);

// Whether a character is white space to Python's `str.strip`.
bool is_space(uint32_t character);

}  // namespace bita
