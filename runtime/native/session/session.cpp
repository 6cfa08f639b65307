#include "session.h"

#include <algorithm>
#include <random>

namespace bita {

namespace {

using Clock = std::chrono::steady_clock;

uint64_t new_seed() {
  std::random_device source;
  return static_cast<uint64_t>(source()) << 32 | source();
}

int64_t common_length(const std::vector<int64_t>& a, const std::vector<int64_t>& b, int64_t most) {
  const auto size =
      std::min({static_cast<int64_t>(a.size()), static_cast<int64_t>(b.size()), most});
  return std::mismatch(a.begin(), a.begin() + size, b.begin()).first - a.begin();
}

std::vector<int64_t> widen(const std::vector<int32_t>& ids) { return {ids.begin(), ids.end()}; }

// The range of the oldest messages that may be dropped: not a system message at the start, nor the
// last question. Empty if there are none.
std::pair<size_t, size_t> oldest(const std::vector<ChatMessage>& messages) {
  const size_t start = !messages.empty() && messages[0].role == "system" ? 1 : 0;
  for (size_t i = start + 1; i < messages.size(); ++i) {
    if (messages[i].role == "user") return {start, i};
  }
  return {0, 0};
}

}  // namespace

Session::Session(const std::shared_ptr<LoadedEngine>& engine, const TextSettings& settings)
    : Session(engine, engine->drafting(settings.tree_path, settings.adapter_path)) {
  overflow_ = settings.overflow;
}

Session::Session(std::shared_ptr<LoadedEngine> engine, std::shared_ptr<Drafting> drafting)
    : engine_(std::move(engine)),
      drafting_(std::move(drafting)),
      text_(engine_->host().new_text()) {}

Session::~Session() {
  const Turn turn(engine_->turns());
  engine_->host().forget(*text_);
  text_.reset();
  answer_.reset();
  drafting_.reset();  // releases the pages of its prefix
}

std::unique_ptr<Session> Session::fork() {
  end_running();
  std::unique_ptr<Session> other(new Session(engine_, drafting_));
  const Turn turn(engine_->turns());
  other->overflow_ = overflow_;
  engine_->host().fork(*text_, *other->text_);
  other->held_ids_ = held_ids_;
  other->messages_ = messages_;
  other->known_ = known_;
  return other;
}

void Session::start_text(std::string_view prompt, bool add_special_tokens, const Options& options) {
  const std::vector<int64_t> ids =
      widen(engine_->text().codec().encode(prompt, add_special_tokens));
  start(ids, options, engine_->defaults().eos_ids, true, false);
}

void Session::start_tokens(const std::vector<int64_t>& prompt_ids, const Options& options) {
  start(prompt_ids, options, engine_->defaults().eos_ids, false, false);
}

void Session::start_chat(const std::vector<ChatMessage>& messages, const Options& options) {
  options.check(engine_->manifest().vocab_size);
  end_running();
  std::vector<ChatMessage> all = messages_;
  all.insert(all.end(), messages.begin(), messages.end());
  int64_t num_dropped = 0;
  Known prompt = fit(all, options, num_dropped);
  start(prompt.ids, options, engine_->defaults().chat_eos_ids, false, true);
  messages_ = std::move(all);
  prompt_ = std::move(prompt);
  num_dropped_ = num_dropped;
}

void Session::start(const std::vector<int64_t>& prompt_ids, const Options& options,
                    std::vector<int64_t> eos_ids, bool continues, bool is_chat) {
  options.check(engine_->manifest().vocab_size);
  if (!engine_->text().has_codec() && !options.stops.empty()) {
    throw Fault(FaultKind::kUse,
                "stop strings need text, and the engine was opened for token ids "
                "only; give stop token ids");
  }
  if (options.ignores_eos) eos_ids.clear();
  TreeDecoder* decoder = nullptr;
  {
    const Turn turn(engine_->turns());
    decoder = &drafting_->decoder(options.drafts);
  }
  decoder->check_prompt(prompt_ids);
  std::vector<int64_t> ends = eos_ids;
  ends.insert(ends.end(), options.stop_token_ids.begin(), options.stop_token_ids.end());
  const uint64_t seed = options.seed ? *options.seed : new_seed();
  Chooser chooser(options, prompt_ids, ends, seed, 0);
  std::optional<StopRule> rule;
  if (engine_->text().has_codec()) {
    StopOptions stopping;
    stopping.eos_ids.assign(eos_ids.begin(), eos_ids.end());
    stopping.max_new_tokens = options.max_new_tokens;
    stopping.stops = options.stops;
    stopping.stop_token_ids.assign(options.stop_token_ids.begin(), options.stop_token_ids.end());
    rule.emplace(IncrementalText(engine_->text().codec(), continues), stopping);
  }
  StopTime deadline;
  if (options.timeout_s) {
    deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                  std::chrono::duration<double>(*options.timeout_s));
  }
  auto answer = std::unique_ptr<Answer>(new Answer{decoder->begin(prompt_ids, std::move(chooser)),
                                                   decoder,
                                                   std::move(rule),
                                                   {},
                                                   std::move(eos_ids),
                                                   options.stop_token_ids,
                                                   options.max_new_tokens,
                                                   deadline});
  end_running();
  answer_ = std::move(answer);
  reason_ = FinishReason::kNone;
  is_cancelled_ = false;
  seed_ = seed;
  is_chat_ = is_chat;
  answer_text_.clear();
}

void Session::end_running() {
  if (!is_running()) return;
  StepResult ignored;
  finish(FinishReason::kCancelled, ignored);
}

Session::Known Session::fit(std::vector<ChatMessage> messages, const Options& options,
                            int64_t& num_dropped) {
  const int64_t most = drafting_->decoder(DraftPolicy::kEngine).max_prompt_tokens();
  const int64_t room = std::min(options.max_new_tokens, most / 2);
  Known prompt = prompt_of(messages);
  while (overflow_ == Overflow::kDropOldest &&
         static_cast<int64_t>(prompt.ids.size()) > most - room) {
    const auto [first, last] = oldest(messages);
    if (first == last) break;  // if it still does not fit, `start` refuses it
    messages.erase(messages.begin() + static_cast<int64_t>(first),
                   messages.begin() + static_cast<int64_t>(last));
    num_dropped += static_cast<int64_t>(last - first);
    prompt = prompt_of(messages);
  }
  return prompt;
}

// The text of messages. Its known beginning keeps its tokens: an answer keeps those that the model
// wrote. Encoding its text again might give other tokens, for which the cache would be useless.
Session::Known Session::prompt_of(const std::vector<ChatMessage>& messages) const {
  Known prompt{engine_->text().render(messages, true), {}};
  const TextCodec& codec = engine_->text().codec();
  const bool continues = !known_.text.empty() && prompt.text.size() > known_.text.size() &&
                         prompt.text.compare(0, known_.text.size(), known_.text) == 0;
  const std::string_view rest =
      std::string_view(prompt.text).substr(continues ? known_.text.size() : 0);
  if (continues && codec.starts_special(rest)) {
    prompt.ids = known_.ids;
    const std::vector<int32_t> more = codec.encode(rest, false);
    prompt.ids.insert(prompt.ids.end(), more.begin(), more.end());
  } else {
    prompt.ids = widen(codec.encode(prompt.text, false));
  }
  return prompt;
}

bool Session::step(StepResult& result) {
  result = {};
  if (!is_running()) return false;
  const Turn turn(engine_->turns(), answer_->deadline, &is_cancelled_);
  if (!turn) {
    finish(is_cancelled_ ? FinishReason::kCancelled : FinishReason::kTimeout, result);
    return true;
  }
  try {
    return advance(result);
  } catch (...) {
    text_->keep(0);  // the cache may be inconsistent
    finish(FinishReason::kCancelled, result);
    result = {};
    throw;
  }
}

// Run steps until one extends the answer.
bool Session::advance(StepResult& result) {
  TokenSequence& sequence = answer_->sequence;
  take_cache();
  const int64_t num_read = sequence.num_read;
  while (sequence.num_read == num_read) {
    if (is_cancelled_) {
      finish(FinishReason::kCancelled, result);
      return true;
    }
    if (answer_->deadline && Clock::now() >= *answer_->deadline) {
      finish(FinishReason::kTimeout, result);
      return true;
    }
    if (answer_->decoder->is_full(sequence)) {
      finish(FinishReason::kCapacity, result);
      return true;
    }
    const bool is_decode_step = sequence.has_answer();
    const bool was_plain = sequence.is_plain;
    const std::vector<int64_t> tokens = answer_->decoder->step(sequence, *text_, stats_);
    if (sequence.is_plain && !was_plain) {
      engine_->log()(LogLevel::kWarning,
                     "the adapter makes the model's values overflow: this text is decoded without "
                     "drafts; tune another adapter");
    }
    held_ids_ = sequence.token_ids;
    const size_t num_before = result.token_ids.size();
    feed(tokens, result);
    if (is_decode_step) {
      stats_.num_tokens += static_cast<int64_t>(result.token_ids.size() - num_before);
    }
  }
  if (answer_->rule) {
    if (answer_->rule->finish_reason() != FinishReason::kNone) {
      finish(answer_->rule->finish_reason(), result);
    } else {
      result.text += answer_->rule->take_text();
    }
  } else if (reason_ != FinishReason::kNone) {
    finish(reason_, result);
  }
  answer_text_ += is_running() ? result.text : "";
  return true;
}

// Keep the cached rows of the beginning that the sequence shares.
void Session::take_cache() {
  engine_->host().note_use(*text_);
  const auto& ids = answer_->sequence.token_ids;
  const auto most = std::min<int64_t>(text_->length(), static_cast<int64_t>(ids.size()) - 1);
  text_->keep(common_length(held_ids_, ids, most));
}

void Session::feed(const std::vector<int64_t>& tokens, StepResult& result) {
  for (const int64_t token : tokens) {
    const auto id = static_cast<int32_t>(token);
    if (answer_->rule) {
      const size_t num_before = answer_->rule->token_ids().size();
      answer_->rule->feed(id);
      if (answer_->rule->token_ids().size() > num_before) give(id, num_before, result);
      continue;
    }
    if (reason_ != FinishReason::kNone) continue;  // after the end
    give(id, answer_->token_ids.size(), result);
    answer_->token_ids.push_back(id);
    const auto has = [token](const std::vector<int64_t>& ids) {
      return std::find(ids.begin(), ids.end(), token) != ids.end();
    };
    if (has(answer_->eos_ids)) {
      reason_ = FinishReason::kEos;
    } else if (has(answer_->stop_token_ids)) {
      reason_ = FinishReason::kStop;
    } else if (static_cast<int64_t>(answer_->token_ids.size()) >= answer_->max_new_tokens) {
      reason_ = FinishReason::kLength;
    }
  }
}

// number: index of the token in the answer.
void Session::give(int32_t token, size_t number, StepResult& result) const {
  result.token_ids.push_back(token);
  const std::vector<TokenLogprob>& logprobs = answer_->sequence.chooser.logprobs();
  if (number < logprobs.size()) result.logprobs.push_back(logprobs[number]);
}

void Session::finish(FinishReason reason, StepResult& result) {
  reason_ = reason;
  engine_->log()(LogLevel::kDebug, std::string("an answer ended (") + finish_reason_name(reason) +
                                       ") after " + std::to_string(stats_.num_steps) +
                                       " decode steps of the session");
  if (answer_->rule) result.text += answer_->rule->close();
  answer_text_ += result.text;
  note_answer();
}

// Update the known prompt at the end of an answer; the template writes an EOS at its end.
void Session::note_answer() {
  if (!is_chat_ || !answer_->rule) return;
  messages_.push_back({"assistant", answer_text_});
  known_ = prompt_;
  if (reason_ == FinishReason::kStop) return;  // the tokens contain more than the text
  std::vector<int64_t> ids = widen(answer_->rule->token_ids());
  if (reason_ == FinishReason::kEos) ids.pop_back();
  known_.text += answer_text_;
  known_.ids.insert(known_.ids.end(), ids.begin(), ids.end());
}

void Session::clear() {
  end_running();
  messages_.clear();
  known_ = prompt_ = {};
  num_dropped_ = 0;
}

}  // namespace bita
