// Confidence in a guess as a state of the decoder: a level derived from the shares of its first
// tokens.
#pragma once
#include <cstdint>

namespace bita {

// Implement `looks_further` and `level_of` of runtime/decoding/guess_confidence.py.
//
// first, second: the probability that the first token is right, and that the second one is, given
// the first; 0 if unknown. Levels are 0 to 12.
bool looks_further(double first);
int64_t level_of(double first, double second);

}  // namespace bita
