// Sampling: from a row of logits to the tokens that are kept, their probabilities, and the draw.
//
// A token is drawn from a row's true distribution with a number that depends only on the seed and
// on the token's position in the text, so that sampled text does not depend on drafts or trees. The
// weights have the same bits on every processor. Python draws with the same function.
#pragma once

#include <array>
#include <cstdint>

namespace bita {

// A C struct. Temperature, top_k, top_p and min_p are applied to a row in this order; the result is
// the token at `number` in [0, 1) of the cumulative distribution, in the order of the row.
//
// logits: [count], overwritten. top_k: 0 keeps all. place: the token's place in the row; output.
// Each of the three filters sees the distribution that the previous ones leave; tokens that equal
// the last one kept are kept too, so that the order of equal tokens does not matter.
struct DrawTask {
  float* logits;
  int64_t count;
  double temperature;
  double top_p;
  double min_p;
  int64_t top_k;
  double number;
  int64_t place;
};

// Returns 0, or -1 for values that are out of range. Throws std::bad_alloc.
int draw(DrawTask& task);

// Numbers in [0, 1), one for each position of a text, starting at `position`: the first 53 bits of
// block position + 1 of Philox4x64-10 with key (seed, choice). choice: index among several answers
// to one prompt.
class Draws {
 public:
  Draws(uint64_t seed, uint64_t choice, uint64_t position)
      : key_{seed, choice}, position_(position) {}

  double next();

 private:
  std::array<uint64_t, 2> key_;
  uint64_t position_;
};

}  // namespace bita
