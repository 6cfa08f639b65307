// One text's state: its cache, the conversation, and the answer that is being made.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "../text/stop_rule.h"
#include "loaded_engine.h"

namespace bita {

enum class Overflow {
  kRefuse,      // a conversation that does not fit the cache is refused
  kDropOldest,  // the oldest messages but a system message are left out of the prompt
};

struct TextSettings {
  std::string tree_path, adapter_path;  // empty: the engine's own
  Overflow overflow = Overflow::kRefuse;
};

// What one step gave.
struct StepResult {
  std::vector<int32_t> token_ids;      // that were accepted and count
  std::vector<TokenLogprob> logprobs;  // of these, where they are asked for
  std::string text;                    // whole characters that are safe to show
};

// Used by one thread at a time, but for `cancel`.
class Session {
 public:
  Session(const std::shared_ptr<LoadedEngine>& engine, const TextSettings& settings);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // Another session that goes on from here, and shares what is cached. An answer that is being made
  // is cancelled first, as when another one is started.
  std::unique_ptr<Session> fork();

  // Start an answer. Throws a Fault, and then nothing has changed.
  void start_text(std::string_view prompt, bool add_special_tokens, const Options& options);
  void start_tokens(const std::vector<int64_t>& prompt_ids, const Options& options);
  // Add messages to the conversation and answer them; the answer is added when it has ended.
  void start_chat(const std::vector<ChatMessage>& messages, const Options& options);

  // Run steps until the answer gets further; false if it had ended before. Throws a Fault, and then
  // the answer has ended.
  bool step(StepResult& result);
  // End the answer before its next step. Any thread may call it, and a signal handler.
  void cancel() { is_cancelled_ = true; }
  // Begin another conversation; what is cached stays for texts that begin alike.
  void clear();

  bool is_running() const { return answer_ && reason_ == FinishReason::kNone; }
  FinishReason finish_reason() const { return reason_; }
  uint64_t seed() const { return seed_; }
  int64_t num_dropped() const { return num_dropped_; }
  const Stats& stats() const { return stats_; }
  const LoadedEngine& engine() const { return *engine_; }

 private:
  // The beginning of a prompt's text, and the token ids that it had so far.
  struct Known {
    std::string text;
    std::vector<int64_t> ids;
  };
  // An answer that is being made.
  struct Answer {
    TokenSequence sequence;
    TreeDecoder* decoder;
    std::optional<StopRule> rule;    // none where there is no text
    std::vector<int32_t> token_ids;  // then, that count
    std::vector<int64_t> end_ids;
    int64_t max_new_tokens;
    Deadline deadline;
  };

  Session(std::shared_ptr<LoadedEngine> engine, std::shared_ptr<Drafting> drafting);

  void start(const std::vector<int64_t>& prompt_ids, const Options& options,
             std::vector<int64_t> eos_ids, bool continues, bool is_chat);
  void end_running();
  Known fitting(std::vector<ChatMessage> messages, const Options& options, int64_t& num_dropped);
  Known prompt_of(const std::vector<ChatMessage>& messages) const;
  void take_cache();
  bool advance(StepResult& result);
  bool has_reason_to_end();
  void feed(const std::vector<int64_t>& tokens, StepResult& result);
  void give(int32_t token, size_t number, StepResult& result) const;
  void finish(FinishReason reason, StepResult& result);
  void note_answer();

  std::shared_ptr<LoadedEngine> engine_;
  std::shared_ptr<Drafting> drafting_;
  Overflow overflow_ = Overflow::kRefuse;
  std::unique_ptr<CachedText> text_;
  std::vector<int64_t> held_ids_;  // tokens whose rows are cached, and more
  std::unique_ptr<Answer> answer_;
  std::atomic<bool> is_cancelled_{false};
  FinishReason reason_ = FinishReason::kNone;
  uint64_t seed_ = 0;
  Stats stats_;
  // the conversation
  std::vector<ChatMessage> messages_;
  Known known_, prompt_;
  std::string answer_text_;
  bool is_chat_ = false;
  int64_t num_dropped_ = 0;
};

}  // namespace bita
