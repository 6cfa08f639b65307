#include "add_norm.h"

#include "../kernels/roads.h"

namespace bita {
namespace {

// Of each row that is normed, its number; of all rows in order if `rows` is absent.
Dims chosen_rows(const Tensor& rows, int64_t num_rows) {
  Dims chosen;
  if (!rows) {
    for (int64_t row = 0; row < num_rows; ++row) chosen.push_back(row);
    return chosen;
  }
  check_dims("rows", rows, {-1});
  chosen.assign(rows.as<int64_t>(), rows.as<int64_t>() + rows.dims[0]);
  for (int64_t row : chosen)
    if (row < 0 || row >= num_rows)
      throw std::runtime_error("row " + std::to_string(row) + " is not one of " +
                               std::to_string(num_rows));
  return chosen;
}

}  // namespace

AddNorm::AddNorm(const NodeInfo& info)
    : epsilon_(info.real("epsilon")),
      delta_scale_(info.real("delta_scale")),
      weight_(info.constant(2)),
      delta_weight_(info.constant(3)) {
  check_dims("weight", weight_, {-1});
  size_ = weight_.dims[0];
  if (size_ < 1) throw std::runtime_error("weight is empty");
  if (delta_weight_) check_dims("delta_weight", delta_weight_, {size_});
}

void AddNorm::run(const NodeRun& node) const {
  const Tensor residual = node.input(0), delta = node.input(1);
  check_dims("residual", residual, {-1, size_});
  const int64_t num_rows = residual.dims[0];
  if (delta) check_dims("delta", delta, {num_rows, size_});
  const Dims chosen = chosen_rows(node.input(4), num_rows);
  const int64_t num_chosen = static_cast<int64_t>(chosen.size());
  const int64_t bytes = row_bytes(num_blocks(size_));
  uint8_t* quantized = node.output<uint8_t>(0, {num_chosen, bytes});
  float* total = node.output<float>(1, {num_rows, size_});
  const Kernels& kernel = kernels();
  const auto add_norm = [&](int64_t row, float* sum, uint8_t* out) {
    kernel.add_norm(residual.as<float>() + row * size_,
                    delta ? delta.as<float>() + row * size_ : nullptr, delta_weight_.as<float>(),
                    weight_.as<float>(), epsilon_, delta_scale_, size_, sum, out);
  };
  const bool takes_all = num_chosen == num_rows && !node.input(4);
  if (takes_all) {
    std::vector<float> scratch(total || !delta ? 0 : static_cast<size_t>(num_rows * size_));
    float* sums = total ? total : delta ? scratch.data() : nullptr;
    node.parallel(num_rows, 4 * num_rows * size_, [&](int64_t row) {
      add_norm(row, sums ? sums + row * size_ : nullptr, quantized + row * bytes);
    });
    return;
  }
  if (total)
    for (int64_t row = 0; row < num_rows; ++row) add_norm(row, total + row * size_, nullptr);
  std::vector<float> scratch(static_cast<size_t>(num_chosen * size_));
  node.parallel(num_chosen, 4 * num_chosen * size_, [&](int64_t i) {
    add_norm(chosen[static_cast<size_t>(i)], delta ? scratch.data() + i * size_ : nullptr,
             quantized + i * bytes);
  });
}

}  // namespace bita
