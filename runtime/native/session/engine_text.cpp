#include "engine_text.h"

#include "../base/files.h"

namespace bita {

namespace {

constexpr uint64_t kMaxTokenizerBytes = 256u << 20;  // the largest in use is 35 MB
constexpr uint64_t kMaxPiecesBytes = 16u << 20;
constexpr const char* kRebuild = "build the engine again: make engine";
constexpr const char* kRenderElsewhere =
    "render the messages elsewhere (transformers' apply_chat_template, or bita in Python) and give "
    "the prompt as text without special tokens added, or as token ids";

std::string content_of(const fs::path& path, uint64_t max_bytes) {
  try {
    return read_regular_file(path, max_bytes);
  } catch (const std::runtime_error& error) {
    throw Fault(FaultKind::kEngine,
                text_of(path) + " cannot be read (" + error.what() + "); " + kRebuild);
  }
}

}  // namespace

EngineText::EngineText(const EngineDirectory& engine) {
  const fs::path path = engine.file(kTokenizerFile);
  const std::string fix =
      "open the engine for token ids only, or build it again if the file was changed";
  codec_ = TextCodec::parse(content_of(path, kMaxTokenizerBytes), text_of(path), fix,
                            engine.manifest.vocab_size);
  read_chat_template(engine);
}

void EngineText::read_chat_template(const EngineDirectory& engine) {
  if (!engine.has(kTemplateFile)) {
    chat_reason_ = "this engine's model has no chat template; give the prompt as text";
    return;
  }
  if (!engine.has(kPiecesFile)) {
    chat_reason_ = "engine " + text_of(engine.path) + " was built without " + kPiecesFile +
                   ", which messages need here: build it again, or " + kRenderElsewhere;
    return;
  }
  const fs::path path = engine.file(kPiecesFile);
  template_ = ChatTemplate::parse(content_of(path, kMaxPiecesBytes), text_of(path));
  if (template_->template_sha256() != engine.files.at(kTemplateFile).sha256) {
    chat_reason_ = text_of(path) + " was made from another " + kTemplateFile +
                   ": build the engine again, or " + kRenderElsewhere;
  }
}

const TextCodec& EngineText::codec() const {
  if (codec_) return *codec_;
  throw Fault(FaultKind::kUse,
              "the engine was opened for token ids only; open it without token_ids_only for text");
}

std::string EngineText::render(const std::vector<ChatMessage>& messages,
                               bool add_generation_prompt) const {
  codec();
  const std::string reason = chat_reason();
  if (!template_ || !reason.empty()) throw Fault(FaultKind::kPrompt, reason);
  return template_->render(messages, add_generation_prompt);
}

std::string EngineText::chat_reason() const {
  if (!codec_) return "the engine was opened for token ids only";
  if (!chat_reason_.empty()) return chat_reason_;
  return template_ ? template_->reason() : "";
}

}  // namespace bita
