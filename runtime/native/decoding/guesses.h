// Guesses of what follows a text: from the text itself, from what the model often says, from masks.
#pragma once
#include <cstdint>
#include <vector>

#include "continuations.h"
#include "draft_order.h"
#include "ngram_index.h"

namespace bita {

constexpr int64_t kTableSteps = 11;                                 // tens of percent, 0 to 100
constexpr int64_t kNumBonuses = 2 * (kMaxMatch + kTableSteps + 1);  // of bita/bonuses.py

// Laid out for C; `runtime/decoding/native_guesses.py` fills it. All arrays stay where they are.
//
// marks, values: [num_slots], of a table of continuations; null for none. ids, logits:
// [max_masks, num_ranks], what the masks drafted last, read when it is asked for. bonuses:
// [kNumBonuses], as an adapter has them.
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

// Laid out for C. What is known of the first places after a text.
//
// tokens: [max_places, width], what may stand at each place, best first, if the best stand in front
// of it; lengths: [max_places], how many of each. width: at least 2 and the masks' num_ranks.
// num_places: down to none where nothing is known. level: how sure the first tokens are, 0 to 12.
// share: how surely the best first token is right. from_masks: whether only a mask says it.
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

// `PlainGuesses` of runtime/decoding/plain_guesses.py.
class Guesses {
 public:
  // Throws std::invalid_argument for counts that are out of range.
  explicit Guesses(const GuessSources& sources);

  void start();  // forget the text
  void extend(const int64_t* token_ids, int64_t count);

  // Fill in what is known of the first `count` places. num_masks: how many masks have drafted,
  // which has to stay the same until the text is extended. Returns 0, or -1 for counts that are out
  // of range.
  int look(int64_t num_masks, int64_t count, GuessesFound& found);

 private:
  struct Place {
    std::vector<int64_t> candidates;  // empty: nothing is known
    double share = 0.0;
    bool follows_text = false;  // whether it and all before it are what followed the text's match
    bool from_masks = false;
  };
  struct Match {
    int64_t length = 0;  // 0 for none
    int64_t token = 0;
  };

  const Place& place(int64_t number, int64_t num_masks);
  Place next_place(int64_t num_masks);
  Place beside_mask(int64_t mask, int64_t before, Match text, Continuation table);
  Place without_mask(Match text, Continuation table) const;
  int64_t level(int64_t num_masks);

  const GuessSources sources_;
  const Continuations table_;
  std::vector<double> text_beside_, table_beside_, text_alone_, table_alone_;
  double agree_alone_ = 0.0;
  NgramIndex index_;
  std::vector<int64_t> last_;  // tokens of the text, then the best ones of the places
  int64_t num_last_ = 0;       // of the text
  std::vector<Place> places_;
};

}  // namespace bita
