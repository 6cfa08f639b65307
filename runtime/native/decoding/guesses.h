// Guesses of a text's continuation: from the text itself, from the model's frequent phrases, from
// masks.
#pragma once
#include <cstdint>
#include <vector>

#include "continuations.h"
#include "draft_order.h"
#include "ngram_index.h"

namespace bita {

constexpr int64_t kTableSteps = 11;  // probabilities 0 %, 10 %, ... 100 %
constexpr int64_t kNumBonuses = 2 * (kMaxMatch + kTableSteps + 1);  // as in bita/bonuses.py

// A C struct that `runtime/decoding/native_guesses.py` fills. All arrays must keep their addresses.
//
// marks, values: [num_slots], a table of continuations; null without. ids, logits: [max_masks,
// num_ranks], the most recent drafts of the masks, read on demand. bonuses: [kNumBonuses], in the
// order of an adapter.
struct GuessSources {
  const uint16_t* marks;
  const uint32_t* values;
  int64_t num_slots;
  PairScores pairs;
  const int64_t* ids;
  const float* logits;
  int64_t max_masks;
  int64_t num_ranks;
  const float* bonuses;
};

// A C struct with the guesses for the first places after a text.
//
// tokens: [max_places, width], candidates for each place, best first, given that the best
// candidates precede it. lengths: [max_places], number of candidates. width: at least 2, and at
// least the masks' num_ranks. num_places: places with candidates, possibly 0. level: confidence in
// the first tokens, 0 to 12. share: probability that the best first token is right. from_masks:
// whether only a mask supports it.
struct GuessesFound {
  int64_t max_places;
  int64_t width;
  int64_t* lengths;
  int64_t* tokens;
  int64_t num_places;
  int64_t level;
  int64_t from_masks;
  double share;
};

// Implements `PlainGuesses` of runtime/decoding/plain_guesses.py.
class Guesses {
 public:
  // Throws std::invalid_argument for counts that are out of range.
  explicit Guesses(const GuessSources& sources);

  void start();  // forget the text
  void extend(const int64_t* token_ids, int64_t count);

  // Fill in the guesses for the first `count` places. num_masks: the number of masks that have
  // drafts; it must not change until the text is extended. Returns 0, or -1 for counts that are out
  // of range.
  int look(int64_t num_masks, int64_t count, GuessesFound& found);

 private:
  struct Place {
    std::vector<int64_t> candidates;  // empty if nothing is known
    double share = 0.0;
    bool follows_text = false;  // whether it and all places before it continue the text's match
    bool from_masks = false;
  };
  struct Match {
    int64_t length = 0;  // 0 without a match
    int64_t token = 0;
  };

  const Place& place(int64_t number, int64_t num_masks);
  Place next_place(int64_t num_masks);
  Place with_mask(int64_t mask, int64_t before, Match text, Continuation table);
  Place without_mask(Match text, Continuation table) const;
  int64_t level(int64_t num_masks);

  const GuessSources sources_;
  const Continuations table_;
  std::vector<double> text_with_mask_, table_with_mask_, text_alone_, table_alone_;
  double agree_alone_ = 0.0;
  NgramIndex index_;
  std::vector<int64_t> last_;  // last tokens of the text, then the best tokens of the places
  int64_t num_last_ = 0;       // how many of `last_` are from the text
  std::vector<Place> places_;
};

}  // namespace bita
