// The beginning and the end of a sublayer: rows of the residual stream are normalized, and the
// sublayer's products are added to them.
#pragma once

#include "add_norm.h"
#include "phases.h"

namespace bita {

// The inputs `hidden`, `norm` and `post_norm` of a sublayer, which are its first three.
class Residual {
 public:
  explicit Residual(const NodeInfo& info);

  // The rows of the input `hidden`, checked.
  Tensor read(const NodeRun& node) const;

  int64_t row_bytes() const { return bita::row_bytes(num_blocks(size_)); }
  int64_t size() const { return size_; }

  // The phase that normalizes and quantizes rows [num_rows, hidden].
  auto norm(const float* hidden, int64_t num_rows, uint8_t* out) const {
    return even_phase(
        num_rows, [=](int64_t first, int64_t last) { norm_.quantize(hidden, first, last, out); });
  }

  // Add the residual stream to products [first, last) of a row. If products are normalized first,
  // `add_normed` does this instead.
  void add(const float* hidden, int64_t first, int64_t last, float* products) const;

  // The phase that normalizes whole rows [num_rows, hidden] of products and adds the residual
  // stream; empty if there is no such norm.
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
