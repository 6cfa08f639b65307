// The tokenizer and the chat template of an engine, or neither if it is opened for token ids only.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "../engine/engine_directory.h"
#include "../text/chat_template.h"
#include "../text/token_text.h"

namespace bita {

class EngineText {
 public:
  EngineText() = default;  // token ids only
  // Throws a Fault if a file is broken, or if this library does not support its tokenizer.
  explicit EngineText(const EngineDirectory& engine);

  bool has_codec() const { return codec_.has_value(); }
  // Throws a Fault if there is none.
  const TextCodec& codec() const;
  // Render messages with the model's template. Throws a Fault.
  std::string render(const std::vector<ChatMessage>& messages, bool add_generation_prompt) const;
  // Why messages cannot be rendered here; empty if they can.
  std::string chat_reason() const;

 private:
  void read_chat_template(const EngineDirectory& engine);

  std::optional<TextCodec> codec_;
  std::optional<ChatTemplate> template_;
  std::string chat_reason_;
};

}  // namespace bita
