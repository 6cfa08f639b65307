// From a row of logits to a token: which tokens are kept, how probable they are, and the draw.
//
// A token is drawn from a row's true distribution with a number that depends on the seed and on the
// token's position in the text only, so that sampled text does not depend on drafts or trees. The
// bits of the weights are the same on every processor. Python draws with the same function.
#pragma once

#include <array>
#include <cstdint>

namespace bita {

// Laid out for C. What temperature, top_k, top_p and min_p leave of a row, in this order, and the
// token at `number` in [0, 1) of its cumulative distribution, in the order of the row.
//
// logits: [count], overwritten. top_k: 0 for all. place: of the token in the row; output. Each of
// the three looks at the distribution that the ones before it leave; tokens equal to the last that
// is kept are kept too, so that the order of equal ones does not matter.
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

// Numbers in [0, 1), one for each position of a text from `position` on: the first 53 bits of block
// position + 1 of Philox4x64-10 with key (seed, choice). choice: of several answers to one prompt.
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
