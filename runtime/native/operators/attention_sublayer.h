#pragma once

#include "attention.h"
#include "linear.h"
#include "residual.h"

namespace bita {

// The first half of a layer: hidden + o(attention(qkv(norm(hidden)))).
class AttentionSublayer {
 public:
  static constexpr const char* kName = "AttentionSublayer";
  static constexpr std::array<Port, 22> kInputs = {
      {{"hidden", kFloat},          {"norm", kFloat},
       {"post_norm", kFloat, true}, {"qkv_values", kByte},
       {"qkv_scales", kHalf},       {"qkv_minima", kHalf, true},
       {"qkv_bias", kFloat, true},  {"qkv_down", kHalf, true},
       {"qkv_up", kHalf, true},     {"sights", kInt64},
       {"past", kAnyType},          {"cos", kFloat, true},
       {"sin", kFloat, true},       {"q_norm", kFloat, true},
       {"k_norm", kFloat, true},    {"o_values", kByte},
       {"o_scales", kHalf},         {"o_minima", kHalf, true},
       {"o_bias", kFloat, true},    {"o_down", kHalf, true},
       {"o_up", kHalf, true},       {"first_mask_row", kInt64, true}}};
  static constexpr std::array<Port, 2> kOutputs = {{{"sum", kFloat}, {"present", kAnyType}}};

  explicit AttentionSublayer(const NodeInfo& info);
  void run(const NodeRun& node) const;

 private:
  Residual residual_;
  Attention attention_;
  Linear qkv_, o_;
};

}  // namespace bita
