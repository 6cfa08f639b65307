#include "guess_confidence.h"

#include <algorithm>
#include <iterator>

namespace bita {
namespace {

constexpr double kFirst[] = {0.2, 0.35, 0.5, 0.65, 0.8, 0.92};  // shares of the first token
constexpr int64_t kLookedAt = 3;  // thresholds from which the second token counts too
constexpr double kNext = 0.5, kLikelyNext = 0.85;  // shares of the second token

}  // namespace

bool looks_further(double first) { return first >= kFirst[kLookedAt - 1]; }

int64_t level_of(double first, double second) {
  const double* const end = std::end(kFirst);
  const int64_t place = std::upper_bound(kFirst, end, first) - kFirst;
  if (place < kLookedAt) return place + (first > 0);
  const bool is_last = kFirst + place == end;
  return kLookedAt + 1 + 2 * (place - kLookedAt) + (second >= kNext) +
         (is_last && second >= kLikelyNext);
}

}  // namespace bita
