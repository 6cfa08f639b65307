// Decides when a generation ends, and exactly which tokens and which text belong to it.
//
// A step may commit several tokens at once, so the end can be inside an accepted path. The rule
// processes one token at a time. What it keeps does not depend on how steps divide the tokens, so
// speculative and plain decoding stop at the same token with the same text.
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

// Returns "eos", "stop", "grammar", "length", "capacity", "timeout" or "cancelled"; "" for kNone.
const char* finish_reason_name(FinishReason reason);

struct StopOptions {
  std::vector<int32_t> eos_ids;  // empty to continue after EOS tokens
  int64_t max_new_tokens = 1;
  std::vector<std::string> stops;
  std::vector<int32_t>
      stop_token_ids;  // further tokens that end the answer; kept and not shown, like EOS
};

// Decides token by token which part of a generation counts.
//
// A generation ends at the first of these, checked in this order for each token: an EOS or stop
// token (kept in `token_ids`, not shown), the token that completes a stop string (kept; the text is
// cut before the string), or the token limit. A special token completes a stop string that ends
// with its own string; if it is an EOS or stop token, the text is still cut before the stop string.
// Tokens fed after the end are ignored, so a whole accepted path can be fed at once; the growth of
// `token_ids` is the number of tokens kept.
class StopRule {
 public:
  // text: unused so far; the rule takes ownership.
  // Throws Fault(kPrompt) if the limit is below 1 or a stop string is invalid.
  StopRule(IncrementalText text, const StopOptions& options);

  // Processes the next token; sets `finish_reason` if it is the last one.
  void feed(int32_t token_id);

  // Returns new text that is safe to show: whole characters that no stop string can still remove.
  std::string take_text();

  // Ends the text and returns the remaining part. Later calls return "".
  //
  // The texts returned add up to the decoded `token_ids` without a final EOS, cut before the stop
  // string if there is one.
  std::string close();

  const std::vector<int32_t>& token_ids() const { return token_ids_; }
  FinishReason finish_reason() const { return finish_reason_; }

  // Returns whether the last token is not text: EOS, a stop token, or a special token.
  bool ended_at_token() const { return ended_at_token_; }

  // Ends the generation for a reason outside of its text, such as kTimeout.
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
