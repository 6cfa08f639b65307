#include "chat_template.h"

#include <algorithm>
#include <utility>

#include "../base/fault.h"
#include "../base/json.h"
#include "chat_pieces.h"
#include "utf8.h"

namespace bita {

namespace {

// Limits equal to TemplateLimits of the Python runtime.
constexpr size_t kMaxMessages = 2048;
constexpr size_t kMaxCharacters = 2'000'000;

constexpr std::string_view kWayAround = "; render the prompt elsewhere and give it as text";

Fault refusal(const std::string& message) { return Fault(FaultKind::kPrompt, message); }

Fault uncovered(const std::string& what) {
  return refusal(what + " is not covered by the pieces of the chat template" +
                 std::string(kWayAround));
}

bool is_developer(const std::string& role) { return role == "developer"; }

// Returns the index of a role in kRoleNames, or kNumRoles for an unknown role.
size_t role_index(const std::string& role) {
  const auto found = std::find(kRoleNames.begin(), kRoleNames.end(), role);
  return static_cast<size_t>(found - kRoleNames.begin());
}

void check(const std::vector<ChatMessage>& messages) {
  if (messages.empty() || messages.size() > kMaxMessages) {
    throw refusal("there are " + std::to_string(messages.size()) + " messages; pass 1 to " +
                  std::to_string(kMaxMessages));
  }
  std::vector<std::string> faults;
  for (size_t i = 0; i < messages.size(); ++i) {
    const auto& [role, content] = messages[i];
    const std::string number = "number " + std::to_string(i);
    if (!is_developer(role) && role_index(role) == kNumRoles) {
      const bool is_text = utf8_error(role) == role.size();
      faults.push_back(number + " has the role " + (is_text ? shown(role) : "of invalid UTF-8") +
                       "; use one of system, developer, user, assistant, tool");
    }
    if (utf8_error(content) != content.size()) {
      faults.push_back(number + " has content that is not UTF-8 at byte " +
                       std::to_string(utf8_error(content)));
    }
  }
  raise_faults(FaultKind::kPrompt, "messages", faults);
}

// Returns the indices of the roles of valid messages.
std::vector<size_t> roles_of(const std::vector<ChatMessage>& messages, const ChatPieces& pieces) {
  std::vector<size_t> roles;
  for (const ChatMessage& message : messages) {
    if (is_developer(message.role) && !pieces.covers_developer) {
      throw uncovered("the role 'developer'");
    }
    roles.push_back(is_developer(message.role) ? kSystem : role_index(message.role));
  }
  return roles;
}

// Returns what follows each message: nothing, others, or others with a user's among them.
std::vector<size_t> followers(const std::vector<size_t>& roles) {
  std::vector<size_t> found(roles.size(), kNothing);
  for (size_t i = roles.size(); i-- > 1;) {
    const bool is_user = roles[i] == kUser || found[i] == kLaterUser;
    found[i - 1] = is_user ? kLaterUser : kOthers;
  }
  return found;
}

// Returns the part of a content that a piece writes. Throws if the piece does not cover the
// content.
std::string_view written(const Piece& piece, std::string_view content) {
  static const Strip kBlank{{true, {}}, {}};
  if (!piece.covers_blank && kBlank.of(content).empty()) {
    throw uncovered("a message of white space only");
  }
  for (const std::string& text : piece.uncovered) {
    if (content.find(text) != std::string_view::npos) {
      throw uncovered("a message with " + shown(text));
    }
  }
  if (!piece.content) return "";
  const size_t mark = piece.mark.empty() ? std::string_view::npos : content.rfind(piece.mark);
  if (mark == std::string_view::npos) return piece.content->of(content);
  return piece.cut.of(content.substr(mark + piece.mark.size()));
}

// A prompt under construction, with a limit on its length.
class Prompt {
 public:
  explicit Prompt(std::string_view first) : first_(first) {}

  void add(std::string_view text) {
    text_ += text;
    // a quick bound, since a character has up to four bytes; `take` counts characters
    if (text_.size() > 4 * kMaxCharacters) throw_too_long();
  }
  void add(const std::vector<Part>& parts) {
    for (const Part& part : parts) add(part.first ? part.first->of(first_) : part.text);
  }
  std::string take() {
    if (num_characters(text_) > kMaxCharacters) throw_too_long();
    return std::move(text_);
  }

 private:
  [[noreturn]] static void throw_too_long() {
    throw refusal("the chat template makes a prompt of over " + std::to_string(kMaxCharacters) +
                  " characters; shorten the conversation");
  }

  std::string_view first_;  // the content of the first message
  std::string text_;
};

}  // namespace

ChatTemplate::ChatTemplate(std::shared_ptr<const ChatPieces> pieces) : pieces_(std::move(pieces)) {}

ChatTemplate ChatTemplate::parse(std::string_view json, const std::string& subject) {
  return ChatTemplate(std::make_shared<const ChatPieces>(parse_chat_pieces(json, subject)));
}

const std::string& ChatTemplate::reason() const { return pieces_->reason; }

const std::string& ChatTemplate::template_sha256() const { return pieces_->template_sha256; }

std::string ChatTemplate::render(const std::vector<ChatMessage>& messages,
                                 bool add_generation_prompt) const {
  check(messages);
  if (!pieces_->reason.empty()) {
    throw refusal("messages cannot be rendered, because the chat template has no pieces: " +
                  pieces_->reason + std::string(kWayAround));
  }
  const std::vector<size_t> roles = roles_of(messages, *pieces_);
  const std::vector<size_t> following = followers(roles);
  Prompt prompt(messages[0].content);
  const State* state = &pieces_->states[0];
  for (size_t i = 0; i < messages.size(); ++i) {
    const RoleEntry& entry = state->roles[roles[i]];
    const Piece& piece = entry.pieces[following[i]];
    if (piece.refusal) throw refusal(pieces_->refusals[*piece.refusal]);
    const std::string_view content = written(piece, messages[i].content);
    if (piece.content) prompt.add(piece.before);
    prompt.add(content);
    state = &pieces_->states[entry.to];
  }
  const End& end = add_generation_prompt ? state->prompt : state->plain;
  if (end.refusal) throw refusal(pieces_->refusals[*end.refusal]);
  prompt.add(end.text);
  return prompt.take();
}

}  // namespace bita
