#pragma once

#include "weights.h"

namespace bita {

// Rows of the embedding table; ids from V up select the adapter's mask embeddings.
class Embed {
 public:
  static constexpr const char* kName = "Embed";
  static constexpr std::array<Port, 5> kInputs = {{{"token_ids", kInt64},
                                                   {"mask_embeddings", kFloat},
                                                   {"values", kByte},
                                                   {"scales", kHalf},
                                                   {"minima", kHalf, true}}};
  static constexpr std::array<Port, 1> kOutputs = {{{"hidden", kFloat}}};

  explicit Embed(const NodeInfo& info);
  void run(const NodeRun& node) const;

 private:
  int64_t hidden_size_, vocab_size_;
  float scale_;
  KernelWeights weights_;
};

}  // namespace bita
