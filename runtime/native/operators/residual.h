// How a sublayer begins and ends: rows of the residual stream are normed, and what is made of them
// is added.
#pragma once

#include "add_norm.h"
#include "phases.h"

namespace bita {

// The inputs `hidden`, `norm` and `post_norm` of a sublayer, which come first.
class Residual {
 public:
  explicit Residual(const NodeInfo& info);

  // The rows of the input `hidden`, checked.
  Tensor read(const NodeRun& node) const;

  int64_t row_bytes() const { return bita::row_bytes(num_blocks(size_)); }
  int64_t size() const { return size_; }

  // The norm of rows [num_rows, hidden], quantized.
  auto norm(const float* hidden, int64_t num_rows, uint8_t* out) const {
    return even_phase(
        num_rows, [=](int64_t first, int64_t last) { norm_.quantize(hidden, first, last, out); });
  }

  // To products [first, last) of a row, add what is in the residual stream there. Where products
  // are normed first, that is left to `add_normed`.
  void add(const float* hidden, int64_t first, int64_t last, float* products) const;

  // The same of whole rows [num_rows, hidden], after their norm; no work where there is none.
  auto add_normed(const float* hidden, int64_t num_rows, float* products) const {
    return even_phase(post_norm_ ? num_rows : 0, [=](int64_t first, int64_t last) {
      add_rows(hidden, first, last, products);
    });
  }

 private:
  void add_rows(const float* hidden, int64_t first, int64_t last, float* products) const;

  int64_t size_;
  RowNorm norm_;
  const float* post_norm_;
  float scale_;
};

}  // namespace bita
