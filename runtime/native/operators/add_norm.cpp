#include "add_norm.h"

#include "../kernels/isa.h"
#include "scratch.h"

namespace bita {
namespace {

constexpr int64_t kWorkPerValue = 4;

// The number of rows to normalize: the length of `rows`, or all rows if it is absent.
int64_t count_chosen(const Tensor& rows, int64_t num_rows) {
  if (!rows) return num_rows;
  check_dims("rows", rows, {-1});
  for (int64_t i = 0; i < rows.dims[0]; ++i) {
    const int64_t row = rows.as<int64_t>()[i];
    if (row < 0 || row >= num_rows)
      throw std::runtime_error("row " + std::to_string(row) + " is not one of the " +
                               std::to_string(num_rows) + " rows");
  }
  return rows.dims[0];
}

}  // namespace

void RowNorm::quantize(const float* rows, int64_t first, int64_t last, uint8_t* out) const {
  const Kernels& kernel = kernels();
  const int64_t bytes = row_bytes(num_blocks(size));
  for (int64_t row = first; row < last; ++row)
    kernel.add_norm(rows + row * size, nullptr, nullptr, weight, epsilon, 1.0f, size, nullptr,
                    out + row * bytes);
}

AddNorm::AddNorm(const NodeInfo& info)
    : epsilon_(info.real("epsilon")),
      delta_scale_(info.real("delta_scale", 1.0f)),
      weight_(info.constant(2)),
      delta_weight_(info.constant(3)) {
  check_dims("weight", weight_, {-1});
  size_ = weight_.dims[0];
  if (size_ < 1) throw std::runtime_error("weight is empty");
  if (delta_weight_) check_dims("delta_weight", delta_weight_, {size_});
}

void AddNorm::run(const NodeRun& node) const {
  const Tensor residual = node.input(0), delta = node.input(1), rows = node.input(4);
  check_dims("residual", residual, {-1, size_});
  const int64_t num_rows = residual.dims[0];
  if (delta) check_dims("delta", delta, {num_rows, size_});
  const int64_t num_chosen = count_chosen(rows, num_rows), bytes = row_bytes(num_blocks(size_));
  uint8_t* quantized = node.output<uint8_t>(0, {num_chosen, bytes});
  float* total = node.output<float>(1, {num_rows, size_});
  const Kernels& kernel = kernels();
  const auto add_norm = [&](int64_t row, float* sum, uint8_t* out) {
    kernel.add_norm(residual.as<float>() + row * size_,
                    delta ? delta.as<float>() + row * size_ : nullptr, delta_weight_.as<float>(),
                    weight_.as<float>(), epsilon_, delta_scale_, size_, sum, out);
  };
  if (total && !rows) {
    node.parallel_work(num_rows, kWorkPerValue * num_rows * size_, [&](int64_t row) {
      add_norm(row, total + row * size_, quantized + row * bytes);
    });
    return;
  }
  for (int64_t row = 0; total && row < num_rows; ++row) add_norm(row, total + row * size_, nullptr);
  thread_local Scratch<float> scratch;
  float* sums = delta ? scratch.take(num_chosen * size_) : nullptr;
  node.parallel_work(num_chosen, kWorkPerValue * num_chosen * size_, [&](int64_t i) {
    add_norm(rows ? rows.as<int64_t>()[i] : i, sums ? sums + i * size_ : nullptr,
             quantized + i * bytes);
  });
}

}  // namespace bita
