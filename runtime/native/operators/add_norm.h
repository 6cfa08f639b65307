#pragma once

#include "weights.h"

namespace bita {

// RMS norm of rows, with quantized output.
struct RowNorm {
  const float* weight;  // [size]
  float epsilon;
  int64_t size;

  // Normalize the rows [first, last) of `rows` [.., size] into the same rows of out [..,
  // row_bytes].
  void quantize(const float* rows, int64_t first, int64_t last, uint8_t* out) const;
};

// total = residual + delta_scale * delta, and its quantized RMS norm: for all rows, or for those
// that `rows` names.
class AddNorm {
 public:
  static constexpr const char* kName = "AddNorm";
  static constexpr std::array<Port, 5> kInputs = {{{"residual", kFloat},
                                                   {"delta", kFloat, true},
                                                   {"weight", kFloat},
                                                   {"delta_weight", kFloat, true},
                                                   {"rows", kInt64, true}}};
  static constexpr std::array<Port, 2> kOutputs = {{{"quantized", kByte}, {"total", kFloat, true}}};

  explicit AddNorm(const NodeInfo& info);
  void run(const NodeRun& node) const;

 private:
  float epsilon_, delta_scale_;
  Tensor weight_, delta_weight_;
  int64_t size_;
};

}  // namespace bita
