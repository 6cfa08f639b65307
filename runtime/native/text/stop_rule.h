// When a generation ends, and exactly which tokens and which text belong to it.
//
// A step may commit several tokens at once, so the end can lie inside an accepted path. The rule
// here looks at one token after the other: what it keeps does not depend on how the steps cut the
// path, so speculative and plain decoding stop at the same token with the same text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_set>
#include <vector>

#include "special_marks.h"
#include "stop_strings.h"
#include "token_text.h"

namespace bita {

enum class FinishReason { kNone, kEos, kStop, kGrammar, kLength, kCapacity, kTimeout, kCancelled };

// "eos", "stop", "grammar", "length", "capacity", "timeout", "cancelled"; "" for kNone.
const char* finish_reason_name(FinishReason reason);

struct StopOptions {
  std::vector<int32_t> eos_ids;  // empty to continue after EOS tokens
  int64_t max_new_tokens = 1;
  std::vector<std::string> stops;
  std::vector<int32_t> stop_token_ids;  // more that end the answer, kept and not shown like EOS
};

// Decides token by token what of a generation counts.
//
// It ends at an EOS or stop token (kept in `token_ids`, not shown), at the token that completes a
// stop string (kept; the text is cut before the string), or at the token limit, looked at in this
// order. A special token completes a stop string that its own string ends; where that is an EOS or
// stop token, the text is cut before the string all the same. Tokens fed after the end are
// ignored, so a whole accepted path can be fed at once; the number kept of it is the growth of
// `token_ids`.
class StopRule {
 public:
  // text: fresh, owned by the rule from here on.
  // Throws Fault(kPrompt) if the limit is below 1 or a stop string is not usable.
  StopRule(IncrementalText text, const StopOptions& options);

  // Takes the next token of an accepted path; sets `finish_reason` if it is the last one.
  void feed(int32_t token_id);

  // New text that is safe to show: no part of a character, nothing that a stop may take back.
  std::string take_text();

  // Ends the text; returns all that was not taken yet. Only "" follows.
  //
  // All texts taken, joined, are the decoded `token_ids` without a last EOS, cut before the stop
  // string if there is one.
  std::string close();

  const std::vector<int32_t>& token_ids() const { return token_ids_; }
  FinishReason finish_reason() const { return finish_reason_; }

  // Whether the last token is no text: EOS, a stop token, a special token.
  bool ended_at_token() const { return ended_at_token_; }

  // Ends the generation for a reason that lies outside of its text, such as kTimeout.
  void finish(FinishReason reason);

 private:
  void feed_mark(int32_t token_id, const std::string& mark);

  IncrementalText text_;
  std::unordered_set<int32_t> eos_ids_;
  std::unordered_set<int32_t> stop_token_ids_;
  size_t max_new_tokens_;
  SpecialMarks marks_;
  StopStrings stops_;
  std::vector<int32_t> token_ids_;
  FinishReason finish_reason_ = FinishReason::kNone;
  bool ended_at_token_ = false;
  std::string ready_;
};

}  // namespace bita
