#include "stop_rule.h"

#include <utility>

#include "../base/fault.h"

namespace bita {

namespace {

size_t checked_limit(int64_t max_new_tokens) {
  if (max_new_tokens >= 1) return static_cast<size_t>(max_new_tokens);
  throw Fault(FaultKind::kPrompt,
              "max_new_tokens is " + std::to_string(max_new_tokens) + "; pass a positive integer");
}

SpecialMarks checked_marks(const std::vector<std::string>& stops, const TextCodec& codec) {
  raise_faults(FaultKind::kPrompt, "stop strings", stop_faults(stops));
  return {stops, codec};
}

}  // namespace

const char* finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone:
      return "";
    case FinishReason::kEos:
      return "eos";
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kGrammar:
      return "grammar";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCapacity:
      return "capacity";
    case FinishReason::kTimeout:
      return "timeout";
    case FinishReason::kCancelled:
      break;
  }
  return "cancelled";
}

StopRule::StopRule(IncrementalText text, const StopOptions& options)
    : text_(std::move(text)),
      eos_ids_(options.eos_ids.begin(), options.eos_ids.end()),
      stop_token_ids_(options.stop_token_ids.begin(), options.stop_token_ids.end()),
      max_new_tokens_(checked_limit(options.max_new_tokens)),
      marks_(checked_marks(options.stops, text_.codec())),
      stops_(options.stops, marks_.stops()) {}

void StopRule::feed(int32_t token_id) {
  if (finish_reason_ != FinishReason::kNone) return;
  token_ids_.push_back(token_id);
  if (const std::string* mark = marks_.mark(token_id)) {
    feed_mark(token_id, *mark);
    if (finish_reason_ != FinishReason::kNone) return;
  }
  const bool is_eos = eos_ids_.count(token_id) > 0;
  if (is_eos || stop_token_ids_.count(token_id) > 0) {
    finish_reason_ = is_eos ? FinishReason::kEos : FinishReason::kStop;
    ended_at_token_ = true;
    return;
  }
  const std::string piece = text_.push(token_id);
  if (!piece.empty()) ready_ += stops_.push(piece);
  if (stops_.found()) {
    finish_reason_ = FinishReason::kStop;
  } else if (token_ids_.size() >= max_new_tokens_) {
    finish_reason_ = FinishReason::kLength;
  }
}

// Looks for stop strings that this special token completes. An EOS token that is itself a stop
// string ends the answer as EOS.
void StopRule::feed_mark(int32_t token_id, const std::string& mark) {
  ready_ += stops_.push(mark);
  const std::string* found = stops_.found();
  if (!found || (*found == mark && eos_ids_.count(token_id) > 0)) return;
  finish_reason_ = FinishReason::kStop;
  ended_at_token_ = true;
}

std::string StopRule::take_text() {
  std::string text = marks_.shown(std::move(ready_));
  ready_.clear();
  return text;
}

std::string StopRule::close() {
  ready_ += stops_.push(text_.flush());
  ready_ += stops_.flush();
  return take_text();
}

void StopRule::finish(FinishReason reason) {
  if (finish_reason_ == FinishReason::kNone) finish_reason_ = reason;
}

}  // namespace bita
