#include "residual.h"

#include "../kernels/isa.h"

namespace bita {

Residual::Residual(const NodeInfo& info)
    : size_(info.size("hidden_size")),
      norm_{read_vector(info, 1, size_), info.real("epsilon"), size_},
      post_norm_(read_vector(info, 2, size_)),
      scale_(info.real("residual_scale")) {}

Tensor Residual::read(const NodeRun& node) const {
  Tensor hidden = node.input(0);
  check_dims("hidden", hidden, {-1, size_});
  return hidden;
}

void Residual::add(const float* hidden, int64_t first, int64_t last, float* products) const {
  if (post_norm_) return;
  for (int64_t i = first; i < last; ++i)
    products[i - first] = hidden[i] + products[i - first] * scale_;
}

void Residual::add_rows(const float* hidden, int64_t first, int64_t last, float* products) const {
  for (int64_t row = first; row < last; ++row) {
    float* out = products + row * size_;
    kernels().add_norm(hidden + row * size_, out, post_norm_, nullptr, norm_.epsilon, scale_, size_,
                       out, nullptr);
  }
}

}  // namespace bita
