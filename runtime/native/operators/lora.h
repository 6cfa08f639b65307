// What LoRA adds to the mask rows of a step: input @ down @ up.
#pragma once

#include <vector>

#include "../kernels/kernels.h"
#include "phases.h"

namespace bita {

class Lora {
 public:
  // down: index of that input of the node, [inputs, r]; up [r, outputs] follows it. first_mask_row:
  // index of that input [1]. Without them nothing is added. num_rows: of the step. Raises
  // std::runtime_error for shapes that do not fit.
  Lora(const NodeRun& node, size_t down, size_t first_mask_row, int64_t inputs, int64_t outputs,
       int64_t num_rows);

  // Two phases, in this order, compute input @ down of the mask rows, of quantized rows.
  auto read(const uint8_t* rows) {
    return Phase{is_active() ? num_parts() : 0, [=](int64_t part) { read_part(rows, part); }};
  }
  auto sum() {
    return Phase{int64_t{is_active()}, [this](int64_t) { add_parts(); }};
  }

  // Whether there are mask rows, and LoRA for them.
  bool is_active() const { return rank_ && num_rows_ > first_row_; }

  // Add to the outputs [first, last) of a row, which begin at `out`.
  void add(int64_t row, int64_t first, int64_t last, float* out) const;

 private:
  static constexpr int64_t kPart = 128;  // inputs whose products are added up before the parts are

  int64_t num_parts() const { return (inputs_ + kPart - 1) / kPart; }
  void read_part(const uint8_t* rows, int64_t part);
  void add_parts();

  int64_t inputs_, outputs_, num_rows_;
  int64_t first_row_ = INT64_MAX;
  int64_t rank_ = 0;
  Tensor down_, up_;
  std::vector<float> sums_;  // [mask rows, parts, r]
  std::vector<float> thin_;  // [mask rows, r]
};

}  // namespace bita
