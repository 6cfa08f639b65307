// Renders messages to prompt text with the pieces of the model's chat template.
//
// A chat template is a program in Jinja, which this library does not run. If it writes one message
// after the other, the build freezes it into pieces (chat_pieces.json), proved by rendering
// conversations with both; `bita/export/chat_pieces.py` describes them. Otherwise the file holds
// the reason, and `render` refuses.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace bita {

struct ChatMessage {
  std::string role;
  std::string content;
};

struct ChatPieces;  // content of chat_pieces.json

// Renders conversations to the same text as Python's ChatTemplate, or refuses them. Immutable and
// thread-safe.
class ChatTemplate {
 public:
  // Parses chat_pieces.json. Throws Fault(kEngine) that lists every fault of `subject`.
  static ChatTemplate parse(std::string_view json, const std::string& subject);

  // Renders `messages` to prompt text, to be encoded without adding special tokens.
  //
  // add_generation_prompt: whether to end with the beginning of an assistant message.
  // Throws Fault(kPrompt) if the messages are invalid, or if the pieces do not cover them.
  std::string render(const std::vector<ChatMessage>& messages, bool add_generation_prompt) const;

  // Returns why no conversation can be rendered; empty if some can.
  const std::string& reason() const;

  // Returns the SHA-256, in lower-case hex, of the chat_template.jinja from which the pieces were
  // made. The pieces do not apply to an edited template.
  const std::string& template_sha256() const;

 private:
  explicit ChatTemplate(std::shared_ptr<const ChatPieces> pieces);

  std::shared_ptr<const ChatPieces> pieces_;
};

}  // namespace bita
