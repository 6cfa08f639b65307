// LoRA of one layer among others, in the operators' layout.
#pragma once

#include "nodes.h"

namespace bita::tests {

constexpr int64_t kThinLayers = 3, kThinLayer = 1;  // the other layers hold NaN

// Thin matrices of numbers that float16 can represent.
struct Thin {
  int64_t inputs, outputs, rank;
  bool is_gated;                // outputs of the two halves are interleaved in groups
  std::vector<float> down, up;  // [inputs, rank], [rank, outputs]

  // Arrays of all layers; NaN after the last output.
  Value down_value() const;
  Value up_value() const;
};

Thin random_thin(Random& random, int64_t inputs, int64_t outputs, int64_t rank, bool is_gated);

}  // namespace bita::tests
