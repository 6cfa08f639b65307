// The loop over tiles and rows, shared by all ISAs except the portable one.
//
// Each ISA defines `tile_rows`: R rows times one tile, whose values are unpacked once for all rows.
#pragma once

#include <array>
#include <utility>

#include "row_kernels.h"

namespace bita {
namespace {

// One tile and the rows that it is multiplied with.
struct TileTask {
  const uint8_t* values;
  const uint16_t* scales;
  const uint16_t* minima;
  const uint8_t* rows;
  int64_t blocks;
  float* out;
  int64_t out_stride;
  int64_t columns;  // valid outputs of the tile
};

template <int R, int Bits, bool HasMinima>
void tile_rows(const TileTask& task);

using TileRows = void (*)(const TileTask&);

template <int Bits, bool HasMinima, int... R>
constexpr std::array<TileRows, sizeof...(R)> tile_table(std::integer_sequence<int, R...>) {
  return {tile_rows<R + 1, Bits, HasMinima>...};
}

template <int Bits, bool HasMinima>
void all_tiles(const LinearTask& task, int64_t first, int64_t last) {
  static constexpr auto kTable =
      tile_table<Bits, HasMinima>(std::make_integer_sequence<int, Lanes::kMaxRows>());
  const Weights& weights = *task.weights;
  const int64_t blocks = weights.blocks(), stride = row_bytes(blocks);
  for (int64_t tile = first; tile < last; ++tile) {
    TileTask one{weights.values + tile * blocks * weights.block_bytes(),
                 weights.scales + tile * blocks * kTile,
                 HasMinima ? weights.minima + tile * blocks * kTile : nullptr,
                 task.rows,
                 blocks,
                 task.out + (tile - first) * kTile,
                 task.out_stride,
                 std::min<int64_t>(kTile, weights.outputs - tile * kTile)};
    for (int64_t left = task.num_rows; left > 0;) {
      // a single row at the end would take as long as two
      const int64_t most = left == Lanes::kMaxRows + 1 ? Lanes::kMaxRows - 1 : Lanes::kMaxRows;
      const int64_t rows = std::min<int64_t>(left, most);
      kTable[static_cast<size_t>(rows - 1)](one);
      one.rows += rows * stride;
      one.out += rows * task.out_stride;
      left -= rows;
    }
  }
}

void linear(const LinearTask& task, int64_t first, int64_t last) {
  if (task.weights->bits == 4)
    (task.weights->minima ? all_tiles<4, true> : all_tiles<4, false>)(task, first, last);
  else
    (task.weights->minima ? all_tiles<8, true> : all_tiles<8, false>)(task, first, last);
}

inline int32_t four_values(const int8_t* values) {
  int32_t four;
  std::memcpy(&four, values, 4);
  return four;
}

}  // namespace
}  // namespace bita
