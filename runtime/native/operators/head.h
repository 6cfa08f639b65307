#pragma once

#include "weights.h"

namespace bita {

// The logits and the best ids of each row; of equal logits the lower id comes first.
class Head {
 public:
  static constexpr const char* kName = "Head";
  static constexpr std::array<Port, 5> kInputs = {{{"quantized", kByte},
                                                   {"values", kByte},
                                                   {"scales", kHalf},
                                                   {"minima", kHalf, true},
                                                   {"wants_logits", kBool}}};
  static constexpr std::array<Port, 3> kOutputs = {
      {{"top_ids", kInt64}, {"top_logits", kFloat}, {"logits", kFloat, true}}};

  explicit Head(const NodeInfo& info);
  void run(const NodeRun& node) const;

 private:
  int64_t inputs_, outputs_, num_ranks_;
  float softcap_;
  KernelWeights weights_;
};

}  // namespace bita
