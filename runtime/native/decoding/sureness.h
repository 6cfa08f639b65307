// How sure a guess is, as a state of the decoder: a level by the shares of its first tokens.
#pragma once
#include <cstdint>

namespace bita {

// `looks_further` and `level_of` of runtime/decoding/sureness.py.
//
// first, second: how surely the first token is right, and the second one after it; 0 where nothing
// is known. A level is 0 to 12.
bool looks_further(double first);
int64_t level_of(double first, double second);

}  // namespace bita
