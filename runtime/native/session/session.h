// The state of one text: its cache, the conversation, and the answer in progress.
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
  kRefuse,      // refuse a conversation that does not fit the cache
  kDropOldest,  // drop the oldest messages, except a system message, from the prompt
};

struct TextSettings {
  std::string tree_path, adapter_path;  // empty: the engine's own
  Overflow overflow = Overflow::kRefuse;
};

// The result of one step.
struct StepResult {
  std::vector<int32_t> token_ids;      // accepted tokens that belong to the answer
  std::vector<TokenLogprob> logprobs;  // of these tokens, if requested
  std::string text;                    // complete characters that are safe to show
};

// Must be used by one thread at a time, except `cancel`.
class Session {
 public:
  Session(const std::shared_ptr<LoadedEngine>& engine, const TextSettings& settings);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // Create another session that continues from here and shares the cached rows. An answer in
  // progress is cancelled first, as when another one is started.
  std::unique_ptr<Session> fork();

  // Start an answer. Nothing changes if it throws a Fault.
  void start_text(std::string_view prompt, bool add_special_tokens, const Options& options);
  void start_tokens(const std::vector<int64_t>& prompt_ids, const Options& options);
  // Add messages to the conversation and answer them; the answer is added when it has ended.
  void start_chat(const std::vector<ChatMessage>& messages, const Options& options);

  // Run steps until the answer grows; false if it had already ended. If it throws a Fault, the
  // answer has ended.
  bool step(StepResult& result);
  // End the answer before its next step. May be called by any thread and by signal handlers.
  void cancel() { is_cancelled_ = true; }
  // Begin another conversation; cached rows stay for texts that begin alike.
  void clear();

  bool is_running() const { return answer_ && reason_ == FinishReason::kNone; }
  FinishReason finish_reason() const { return reason_; }
  uint64_t seed() const { return seed_; }
  int64_t num_dropped() const { return num_dropped_; }
  const Stats& stats() const { return stats_; }
  const LoadedEngine& engine() const { return *engine_; }

 private:
  // The known beginning of a prompt's text, and its token ids.
  struct Known {
    std::string text;
    std::vector<int64_t> ids;
  };
  // An answer in progress.
  struct Answer {
    TokenSequence sequence;
    TreeDecoder* decoder;
    std::optional<StopRule> rule;    // none for token ids only
    std::vector<int32_t> token_ids;  // accepted tokens that belong to the answer
    std::vector<int64_t> eos_ids, stop_token_ids;
    int64_t max_new_tokens;
    StopTime deadline;
  };

  Session(std::shared_ptr<LoadedEngine> engine, std::shared_ptr<Drafting> drafting);

  void start(const std::vector<int64_t>& prompt_ids, const Options& options,
             std::vector<int64_t> eos_ids, bool continues, bool is_chat);
  void end_running();
  Known fit(std::vector<ChatMessage> messages, const Options& options, int64_t& num_dropped);
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
  std::vector<int64_t> held_ids_;  // tokens whose rows are cached, and possibly more
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
