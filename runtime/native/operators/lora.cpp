#include "lora.h"

#include <algorithm>

#include "../kernels/roads.h"

namespace bita {

Lora::Lora(const NodeRun& node, size_t down, size_t first_mask_row, int64_t inputs, int64_t outputs,
           int64_t num_rows)
    : inputs_(inputs), outputs_(outputs), num_rows_(num_rows) {
  const Tensor first_row = node.input(first_mask_row);
  down_ = node.input(down);
  up_ = node.input(down + 1);
  if (!first_row && !down_ && !up_) return;
  if (!first_row || !down_ || !up_)
    throw std::runtime_error("first_mask_row, down and up belong together");
  check_dims("first_mask_row", first_row, {1});
  check_dims(node.name(down), down_, {inputs_, -1});
  rank_ = down_.dims[1];
  check_dims(node.name(down + 1), up_, {rank_, outputs_});
  first_row_ = first_row.as<int64_t>()[0];
  if (first_row_ < 0) throw std::runtime_error("first_mask_row is negative");
  if (!is_active()) return;
  const int64_t count = (num_rows_ - first_row_) * rank_;
  sums_.assign(static_cast<size_t>(count * num_parts()), 0.0f);
  thin_.assign(static_cast<size_t>(count), 0.0f);
}

void Lora::read_part(const uint8_t* rows, int64_t part) {
  const Kernels& kernel = kernels();
  const int64_t blocks = num_blocks(inputs_), stop = std::min(inputs_, (part + 1) * kPart);
  for (int64_t row = first_row_; row < num_rows_; ++row) {
    const uint8_t* quantized = rows + row * row_bytes(blocks);
    const int8_t* values = reinterpret_cast<const int8_t*>(quantized);
    const float* scales = row_scales(quantized, blocks);
    float* out = sums_.data() + ((row - first_row_) * num_parts() + part) * rank_;
    for (int64_t i = part * kPart; i < stop; ++i)
      kernel.add_scaled(out, down_.as<float>() + i * rank_,
                        scales[i / kBlock] * static_cast<float>(values[i]), rank_);
  }
}

void Lora::add_parts() {
  const int64_t parts = num_parts();
  for (int64_t row = 0; row < num_rows_ - first_row_; ++row)
    for (int64_t part = 0; part < parts; ++part)
      for (int64_t k = 0; k < rank_; ++k)
        thin_[static_cast<size_t>(row * rank_ + k)] +=
            sums_[static_cast<size_t>((row * parts + part) * rank_ + k)];
}

void Lora::add(int64_t row, int64_t first, int64_t last, float* out) const {
  if (!rank_ || row < first_row_) return;
  const float* thin = thin_.data() + (row - first_row_) * rank_;
  const Kernels& kernel = kernels();
  for (int64_t k = 0; k < rank_; ++k)
    kernel.add_scaled(out, up_.as<float>() + k * outputs_ + first, thin[k], last - first);
}

}  // namespace bita
