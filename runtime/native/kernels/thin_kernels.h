// LoRA on rows: products with thin matrices, written once for all ISAs.
//
// A product with `down` adds in lanes (input % 16) in the order of the inputs, then like
// Lanes::sum; a product with `up` adds to the output in the order of the ranks. So the result of a
// row does not depend on the other rows and columns of a task. Weights are loaded and converted
// once for as many rows as fit in registers.
#pragma once

#include <array>
#include <utility>

#include "row_kernels.h"

namespace bita {
namespace {

constexpr int kThin = Lanes::kRegisters >= 20 ? 4 : 2;  // rows, and columns, at a time

// R rows, starting at `row`, times K columns, starting at `column`.
template <int K, int R>
void thin_in_part(const ThinInTask& task, int64_t column, int64_t row) {
  const int64_t width = task.blocks * kBlock, stride = row_bytes(task.blocks);
  const uint16_t* down = task.down + column * width;
  const uint8_t* rows = task.rows + row * stride;
  Lanes sums[K][R];
#pragma GCC unroll 4
  for (int k = 0; k < K; ++k)
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) sums[k][r].clear();
  for (int64_t at = 0; at < width; at += 16) {
    Lanes inputs[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const uint8_t* values = rows + r * stride;
      inputs[r] = Lanes::load_bytes(reinterpret_cast<const int8_t*>(values) + at) *
                  Lanes::all(row_scales(values, task.blocks)[at / kBlock]);
    }
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) {
      const Lanes weight = Lanes::load_half(down + k * width + at);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) sums[k][r].add_product(weight, inputs[r]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int k = 0; k < K; ++k) task.thin[(row + r) * task.rank + column + k] = sums[k][r].sum();
}

// R rows, starting at `row`, times one tile, starting at output `first`.
template <int R>
void thin_out_part(const ThinOutTask& task, int64_t first, int64_t row) {
  const uint16_t* up = task.up + first * task.rank;
  const float* thin = task.thin + row * task.rank;
  float* out = task.out + row * task.out_stride;
  Lanes sums[R];
  for (int r = 0; r < R; ++r) sums[r] = load_at(out + r * task.out_stride, first, task.columns);
  for (int64_t k = 0; k < task.rank; ++k) {
    const Lanes weight = Lanes::load_half(up + k * kTile);
    for (int r = 0; r < R; ++r) sums[r].add_product(weight, Lanes::all(thin[r * task.rank + k]));
  }
  for (int r = 0; r < R; ++r) store_at(sums[r], out + r * task.out_stride, first, task.columns);
}

using ThinInPart = void (*)(const ThinInTask&, int64_t, int64_t);
using ThinOutPart = void (*)(const ThinOutTask&, int64_t, int64_t);

template <int K, int... R>
constexpr std::array<ThinInPart, sizeof...(R)> thin_in_table(std::integer_sequence<int, R...>) {
  return {thin_in_part<K, R + 1>...};
}
template <int... R>
constexpr std::array<ThinOutPart, sizeof...(R)> thin_out_table(std::integer_sequence<int, R...>) {
  return {thin_out_part<R + 1>...};
}

using ThinRows = std::make_integer_sequence<int, kThin>;

void thin_in(const ThinInTask& task, int64_t first, int64_t last) {
  static constexpr auto kWide = thin_in_table<kThin>(ThinRows()),
                        kOne = thin_in_table<1>(ThinRows());
  for (int64_t column = first; column < last;) {
    const bool is_wide = column + kThin <= last;
    for (int64_t row = 0; row < task.num_rows; row += kThin) {
      const int64_t rows = std::min<int64_t>(task.num_rows - row, kThin);
      (is_wide ? kWide : kOne)[static_cast<size_t>(rows - 1)](task, column, row);
    }
    column += is_wide ? kThin : 1;
  }
}

void thin_out(const ThinOutTask& task) {
  static constexpr auto kTable = thin_out_table(ThinRows());
  for (int64_t first = 0; first < task.columns; first += kTile)
    for (int64_t row = 0; row < task.num_rows; row += kThin) {
      const int64_t rows = std::min<int64_t>(task.num_rows - row, kThin);
      kTable[static_cast<size_t>(rows - 1)](task, first, row);
    }
}

}  // namespace
}  // namespace bita
