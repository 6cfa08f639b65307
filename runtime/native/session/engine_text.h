// The tokenizer and the chat template of an engine, or neither where it is for token ids only.
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
  // Throws a Fault if a file is broken, or its tokenizer is none that this library has.
  explicit EngineText(const EngineDirectory& engine);

  bool has_codec() const { return codec_.has_value(); }
  // Throws a Fault where there is none.
  const TextCodec& codec() const;
  // The text of messages by the model's template. Throws a Fault.
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
