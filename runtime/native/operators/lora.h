// What LoRA adds to the mask rows of a step: input @ down @ up.
#pragma once

#include <vector>

#include "../kernels/kernels.h"
#include "ort.h"

namespace bita {

class Lora {
 public:
  // Inputs `first` to `first + 2` of the node: first_mask_row [1], down [inputs, r], up [r,
  // outputs]. Without them nothing is added. Raises std::runtime_error for shapes that do not fit.
  Lora(const NodeRun& node, size_t first, int64_t inputs, int64_t outputs);

  // Compute input @ down of the mask rows, of quantized rows.
  void read(const NodeRun& node, const uint8_t* rows, int64_t num_rows);

  // Whether it adds anything to rows before `num_rows`.
  bool is_active(int64_t num_rows) const { return rank_ && num_rows > first_row_; }

  // Add to the outputs [first, last) of a row, which begin at `out`.
  void add(int64_t row, int64_t first, int64_t last, float* out) const;

 private:
  int64_t inputs_, outputs_;
  int64_t first_row_ = INT64_MAX;
  int64_t rank_ = 0;
  Tensor down_, up_;
  std::vector<float> thin_;  // [mask rows, r]
};

}  // namespace bita
