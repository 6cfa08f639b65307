// LoRA of one layer among others, as the operators read it.
#pragma once

#include "nodes.h"

namespace bita::tests {

constexpr int64_t kThinLayers = 3, kThinLayer = 1;  // the other layers hold NaN

// Thin matrices of numbers that float16 holds.
struct Thin {
  int64_t inputs, outputs, rank;
  bool is_gated;                // the second half of the outputs lies beside the first
  std::vector<float> down, up;  // [inputs, rank], [rank, outputs]

  // Of all layers; what lies past the last output is NaN.
  Value down_value() const;
  Value up_value() const;
};

Thin random_thin(Random& random, int64_t inputs, int64_t outputs, int64_t rank, bool is_gated);

}  // namespace bita::tests
