#pragma once

#include "weights.h"

namespace bita {

class Lora;

// The inputs of both linear operators.
constexpr std::array<Port, 8> kLinearInputs = {{{"quantized", kByte},
                                                {"values", kAnyType},
                                                {"scales", kHalf},
                                                {"minima", kHalf, true},
                                                {"bias", kFloat, true},
                                                {"first_mask_row", kInt64, true},
                                                {"down", kFloat, true},
                                                {"up", kFloat, true}}};

// Quantized rows times weights [N, K], with a bias and LoRA.
class Linear {
 public:
  static constexpr const char* kName = "Linear";
  static constexpr auto kInputs = kLinearInputs;
  static constexpr std::array<Port, 1> kOutputs = {{{"product", kFloat}}};

  explicit Linear(const NodeInfo& info);
  void run(const NodeRun& node) const;

 private:
  int64_t inputs_, outputs_;
  Weights weights_;
  const float* bias_;
};

// activation(gate) * up, quantized. Groups of 32 outputs of the gate and the same of up lie side by
// side in the weights, so that one thread has both.
class GatedLinear {
 public:
  static constexpr const char* kName = "GatedLinear";
  static constexpr auto kInputs = kLinearInputs;
  static constexpr std::array<Port, 1> kOutputs = {{{"quantized", kByte}}};

  explicit GatedLinear(const NodeInfo& info);
  void run(const NodeRun& node) const;

 private:
  // 32 outputs of some rows.
  void run_group(const Kernels& kernel, const uint8_t* rows, int64_t first_row, int64_t num_rows,
                 int64_t group, const Lora* lora, uint8_t* out) const;

  int64_t inputs_, outputs_, groups_;
  bool is_gelu_;
  Weights weights_;
  const float* bias_;
};

}  // namespace bita
