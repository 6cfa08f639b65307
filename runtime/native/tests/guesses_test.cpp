// Guesses: matches in a text compared with a search of all of it, a table, and rejected sources.
#include "../decoding/guesses.h"

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "check.h"

namespace bita::tests {
namespace {

using Tokens = std::vector<int64_t>;

// Length of the run before `place` that equals the one before `end`, at most kMaxMatch.
int64_t common(const Tokens& text, int64_t place, int64_t end) {
  int64_t length = 0;
  while (length < std::min(kMaxMatch, place) && text[static_cast<size_t>(place - length - 1)] ==
                                                    text[static_cast<size_t>(end - length - 1)])
    ++length;
  return length;
}

struct Match {
  int64_t length = 0, place = 0;
};

// The latest place after the longest match of at most kLongestNgram tokens.
Match search(const Tokens& text) {
  const int64_t end = static_cast<int64_t>(text.size());
  Match best;
  for (int64_t place = 1; place < end; ++place) {
    const int64_t length = std::min(common(text, place, end), kLongestNgram);
    if (length && length >= best.length) best = {length, place};
  }
  if (best.length) best.length = common(text, best.place, end);
  return best;
}

const Adds matches("matches in a text are those that a search finds", [] {
  Random random(1);
  for (const int64_t vocab : {1, 3, 40}) {
    NgramIndex index;
    Tokens text;
    for (int round = 0; round < 150; ++round) {
      Tokens added(static_cast<size_t>(random.below(4)));
      for (int64_t& token : added) token = random.below(vocab);
      text.insert(text.end(), added.begin(), added.end());
      index.extend(added.data(), static_cast<int64_t>(added.size()));
      const Match found = search(text);
      expect(index.match_length() == found.length, "length in round " + std::to_string(round));
      if (!found.length) continue;
      Tokens longer = text;
      for (int64_t number = 0; number < 5; ++number) {
        longer.push_back(longer[static_cast<size_t>(found.place + number)]);
        expect(index.following(number) == longer.back(), "place " + std::to_string(number));
      }
    }
    index.clear();
    expect(index.match_length() == 0, "nothing is left");
  }
});

// A table of one run each for 7 and for 7, 8, and no masks.
struct Sources {
  std::vector<uint16_t> marks = std::vector<uint16_t>(8);
  std::vector<uint32_t> values = std::vector<uint32_t>(8);
  std::vector<int64_t> ids = {4, 5, 6, 7, 8, 9};
  std::vector<float> logits = {3.0f, 2.0f, 1.0f, 3.0f, 2.0f, 1.0f};
  std::vector<float> bonuses = std::vector<float>(kNumBonuses, 1.0f);
  GuessSources task{};

  Sources() {
    enter({7}, 8, 60);
    enter({7, 8}, 9, 99);
    task.marks = marks.data();
    task.values = values.data();
    task.num_slots = 8;
    task.ids = ids.data();
    task.logits = logits.data();
    task.max_masks = 2;
    task.num_ranks = 3;
    task.bonuses = bonuses.data();
  }

  void enter(const Tokens& run, uint32_t token, uint32_t percent) {
    auto [slot, mark] = place_of(run.data(), static_cast<int64_t>(run.size()), 3);
    while (values[slot]) slot = (slot + 1) & 7;
    marks[slot] = mark;
    values[slot] = token << 7 | percent;
  }
};

struct Found {
  std::vector<int64_t> lengths, tokens;
  GuessesFound found{};

  explicit Found(int64_t places)
      : lengths(static_cast<size_t>(places)), tokens(static_cast<size_t>(3 * places)) {
    found.max_places = places;
    found.width = 3;
    found.lengths = lengths.data();
    found.tokens = tokens.data();
  }

  Tokens place(size_t number) const {
    const auto from = tokens.begin() + static_cast<int64_t>(3 * number);
    return Tokens(from, from + lengths[number]);
  }
};

const Adds table("a table finds the longest run that it knows", [] {
  const Sources sources;
  const Continuations table{sources.task.marks, sources.task.values, 8};
  const Tokens text = {1, 7, 8};
  expect(table.find(text.data(), 3).token == 9, "after 7, 8");
  expect(table.find(text.data(), 2).token == 8, "after 7");
  expect(table.find(text.data(), 2).percent == 60, "its probability");
  expect(table.find(text.data(), 1).percent == 0, "after 1");
  expect(Continuations{}.find(text.data(), 3).percent == 0, "no table");
});

const Adds places("places follow each other until nothing is known", [] {
  const Sources sources;
  Guesses guesses(sources.task);
  Found room(4);
  expect(guesses.look(0, 4, room.found) == 0, "an empty text");
  expect(room.found.num_places == 0 && room.found.level == 0, "knows nothing");
  const Tokens text = {1, 7};
  guesses.extend(text.data(), 2);
  expect(guesses.look(0, 4, room.found) == 0, "is done");
  expect(room.found.num_places == 2, "two places");
  expect(room.place(0) == Tokens{8} && room.place(1) == Tokens{9}, "from the table");
  guesses.extend(nullptr, 0);
  expect(guesses.look(2, 4, room.found) == 0, "with masks");
  expect(room.place(0).size() == 3 && room.place(1).size() == 3, "as many as they draft");
  guesses.start();
  guesses.extend(text.data(), 1);
  expect(guesses.look(2, 1, room.found) == 0 && room.found.from_masks, "only masks");
  expect(room.place(0) == Tokens({4, 5, 6}), "in their order");
});

const Adds refused("sources and requests out of range are rejected", [] {
  const auto refuses = [](const char* name, void (*spoil)(GuessSources&)) {
    Sources sources;
    spoil(sources.task);
    bool is_refused = false;
    try {
      Guesses guesses(sources.task);
    } catch (const std::invalid_argument&) {
      is_refused = true;
    }
    expect(is_refused, name);
  };
  refuses("slots that are not a power of two", [](GuessSources& s) { s.num_slots = 7; });
  refuses("no values", [](GuessSources& s) { s.values = nullptr; });
  refuses("half of the pair scores", [](GuessSources& s) {
    static const uint16_t left[1] = {};
    s.pairs.left = left;
  });
  refuses("too many drafts", [](GuessSources& s) { s.num_ranks = kMaxDrafts + 1; });
  refuses("no drafts", [](GuessSources& s) { s.num_ranks = 0; });
  refuses("no bonuses", [](GuessSources& s) { s.bonuses = nullptr; });
  const Sources sources;
  Guesses guesses(sources.task);
  Found room(2);
  expect(guesses.look(3, 1, room.found) == -1, "more masks than there are");
  expect(guesses.look(-1, 1, room.found) == -1, "masks below 0");
  expect(guesses.look(0, 3, room.found) == -1, "more places than there is room for");
  room.found.width = 2;
  expect(guesses.look(0, 1, room.found) == -1, "places that are too narrow");
});

}  // namespace
}  // namespace bita::tests
