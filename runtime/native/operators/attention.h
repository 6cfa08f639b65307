#pragma once

#include "weights.h"

namespace bita {

struct StepPlace;

// Attention of a step's rows over pages of keys and values, into which it writes those of the step.
class Attention {
 public:
  static constexpr const char* kName = "Attention";
  static constexpr std::array<Port, 15> kInputs = {{{"qkv", kFloat},
                                                    {"positions", kInt64},
                                                    {"row_slots", kInt64},
                                                    {"row_texts", kInt64},
                                                    {"sees", kBool},
                                                    {"sees_prefix", kBool},
                                                    {"text_lengths", kInt64},
                                                    {"text_pages", kInt64},
                                                    {"prefix_pages", kInt64},
                                                    {"prefix_length", kInt64},
                                                    {"past", kAnyType},
                                                    {"cos", kFloat, true},
                                                    {"sin", kFloat, true},
                                                    {"q_norm", kFloat, true},
                                                    {"k_norm", kFloat, true}}};
  static constexpr std::array<Port, 2> kOutputs = {{{"quantized", kByte}, {"present", kAnyType}}};

  explicit Attention(const NodeInfo& info);
  void run(const NodeRun& node) const;

 private:
  // Norm and rotary embedding of a row's query or key [D].
  void turn(const StepPlace& place, int64_t row, const float* head, bool is_query,
            float* out) const;
  // A row's key, and the value that lies after the keys, to the row's slot.
  void write(const StepPlace& place, int64_t row, const float* key, uint8_t* page,
             bool is_half) const;

  int64_t num_heads_, num_kv_heads_, head_dim_, window_;
  float scale_, softcap_, epsilon_;
  Tensor cos_, sin_;
  const float *q_norm_, *k_norm_;
};

}  // namespace bita
