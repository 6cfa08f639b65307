// Messages to prompt text, by the pieces that the build found in the model's chat template.
//
// A chat template is a program in Jinja, which this library does not run. Where it writes one
// message after the other, the build freezes it into pieces (chat_pieces.json), proved by rendering
// conversations with both; `bita/export/chat_pieces.py` describes them. Where it does not, the file
// holds the reason, and `render` refuses.
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

struct ChatPieces;  // what the file holds

// Renders conversations to the same text as Python's ChatTemplate, or refuses. Immutable: several
// threads may use one.
class ChatTemplate {
 public:
  // The text of chat_pieces.json. Throws Fault(kEngine) that lists every fault of `subject`.
  static ChatTemplate parse(std::string_view json, const std::string& subject);

  // The prompt text of `messages`, ready to be encoded without special tokens added.
  // add_generation_prompt: end where the assistant's answer begins.
  // Throws Fault(kPrompt) if the messages are not usable, or if the pieces do not cover them.
  std::string render(const std::vector<ChatMessage>& messages, bool add_generation_prompt) const;

  // Why no conversation can be rendered; empty if some can.
  const std::string& reason() const;

  // The SHA-256 of the chat_template.jinja that the pieces were made from, in lower-case hex: they
  // are not those of an edited template.
  const std::string& template_sha256() const;

 private:
  explicit ChatTemplate(std::shared_ptr<const ChatPieces> pieces);

  std::shared_ptr<const ChatPieces> pieces_;
};

}  // namespace bita
