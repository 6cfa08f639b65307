#pragma once

#include "linear.h"
#include "residual.h"

namespace bita {

// The second half of a layer: hidden + down(activation(gate(x)) * up(x)) with x = norm(hidden).
class MlpSublayer {
 public:
  static constexpr const char* kName = "MlpSublayer";
  static constexpr std::array<Port, 16> kInputs = {{{"hidden", kFloat},
                                                    {"norm", kFloat},
                                                    {"post_norm", kFloat, true},
                                                    {"gate_up_values", kByte},
                                                    {"gate_up_scales", kHalf},
                                                    {"gate_up_minima", kHalf, true},
                                                    {"gate_up_bias", kFloat, true},
                                                    {"gate_up_down", kHalf, true},
                                                    {"gate_up_up", kHalf, true},
                                                    {"down_values", kByte},
                                                    {"down_scales", kHalf},
                                                    {"down_minima", kHalf, true},
                                                    {"down_bias", kFloat, true},
                                                    {"down_down", kHalf, true},
                                                    {"down_up", kHalf, true},
                                                    {"first_mask_row", kInt64, true}}};
  static constexpr std::array<Port, 1> kOutputs = {{{"sum", kFloat}}};

  explicit MlpSublayer(const NodeInfo& info);
  void run(const NodeRun& node) const;

 private:
  Residual residual_;
  GatedLinear gate_up_;
  Linear down_;
};

}  // namespace bita
