#include "lora.h"

#include <algorithm>

#include "../kernels/roads.h"

namespace bita {
namespace {

constexpr int64_t kPart = 128;  // inputs whose products are added up before the parts are

// input @ down over the inputs of one part, of a quantized row.
void add_part(const uint8_t* row, int64_t blocks, const float* down, int64_t rank, int64_t start,
              int64_t stop, float* out) {
  const int8_t* values = reinterpret_cast<const int8_t*>(row);
  const float* scales = row_scales(row, blocks);
  const Kernels& kernel = kernels();
  for (int64_t i = start; i < stop; ++i)
    kernel.add_scaled(out, down + i * rank, scales[i / kBlock] * static_cast<float>(values[i]),
                      rank);
}

}  // namespace

Lora::Lora(const NodeRun& node, size_t first, int64_t inputs, int64_t outputs)
    : inputs_(inputs), outputs_(outputs) {
  const Tensor first_row = node.input(first);
  down_ = node.input(first + 1);
  up_ = node.input(first + 2);
  if (!first_row && !down_ && !up_) return;
  if (!first_row || !down_ || !up_)
    throw std::runtime_error("first_mask_row, down and up belong together");
  check_dims("first_mask_row", first_row, {1});
  check_dims("down", down_, {inputs_, -1});
  rank_ = down_.dims[1];
  check_dims("up", up_, {rank_, outputs_});
  first_row_ = first_row.as<int64_t>()[0];
  if (first_row_ < 0) throw std::runtime_error("first_mask_row is negative");
}

void Lora::read(const NodeRun& node, const uint8_t* rows, int64_t num_rows) {
  const int64_t count = num_rows - first_row_;
  if (!rank_ || count <= 0) return;
  const int64_t blocks = num_blocks(inputs_), parts = (inputs_ + kPart - 1) / kPart;
  std::vector<float> sums(static_cast<size_t>(count * parts * rank_), 0.0f);
  node.parallel_work(parts, count * inputs_ * rank_, [&](int64_t part) {
    for (int64_t row = 0; row < count; ++row)
      add_part(rows + (first_row_ + row) * row_bytes(blocks), blocks, down_.as<float>(), rank_,
               part * kPart, std::min(inputs_, (part + 1) * kPart),
               sums.data() + (row * parts + part) * rank_);
  });
  thin_.assign(static_cast<size_t>(count * rank_), 0.0f);
  for (int64_t row = 0; row < count; ++row)
    for (int64_t part = 0; part < parts; ++part)
      for (int64_t k = 0; k < rank_; ++k)
        thin_[static_cast<size_t>(row * rank_ + k)] +=
            sums[static_cast<size_t>((row * parts + part) * rank_ + k)];
}

void Lora::add(int64_t row, int64_t first, int64_t last, float* out) const {
  if (!rank_ || row < first_row_) return;
  const float* thin = thin_.data() + (row - first_row_) * rank_;
  const Kernels& kernel = kernels();
  for (int64_t k = 0; k < rank_; ++k)
    kernel.add_scaled(out, up_.as<float>() + k * outputs_ + first, thin[k], last - first);
}

}  // namespace bita
