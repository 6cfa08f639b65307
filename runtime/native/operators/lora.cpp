#include "lora.h"

#include <algorithm>

#include "../kernels/isa.h"

namespace bita {

MaskRows mask_rows(const NodeRun& node, size_t first_mask_row, int64_t num_rows) {
  const Tensor given = node.input(first_mask_row);
  if (!given) return {false, num_rows, 0};
  check_dims("first_mask_row", given, {1});
  const int64_t first = given.as<int64_t>()[0];
  if (first < 0) throw std::runtime_error("first_mask_row is negative");
  return {true, first, std::max<int64_t>(num_rows - first, 0)};
}

Lora::Lora(const NodeRun& node, const MaskRows& masks, size_t down, int64_t layer, int64_t blocks,
           int64_t tiles)
    : masks_(masks), blocks_(blocks) {
  if (masks.is_given && !masks.count) return;
  const Tensor downs = node.input(down), ups = node.input(down + 1);
  if (!masks.is_given && !downs && !ups) return;
  if (!masks.is_given || !downs || !ups)
    throw std::runtime_error("first_mask_row, down and up must be given together");
  const int64_t width = blocks * kBlock;
  check_dims(node.name(down), downs, {-1, -1, width});
  const int64_t num_layers = downs.dims[0];
  rank_ = downs.dims[1];
  check_dims(node.name(down + 1), ups, {num_layers, tiles, rank_, kTile});
  if (layer >= num_layers)
    throw std::runtime_error(std::string(node.name(down)) + " has " + std::to_string(num_layers) +
                             " layers, but this is layer " + std::to_string(layer));
  if (!rank_) return;
  down_ = downs.as<uint16_t>() + layer * rank_ * width;
  up_ = ups.as<uint16_t>() + layer * tiles * rank_ * kTile;
  thin_.reset(new float[static_cast<size_t>(masks.count * rank_)]);
}

void Lora::read_part(const uint8_t* rows, int64_t part) {
  const uint8_t* first_row = rows + masks_.first * row_bytes(blocks_);
  kernels().thin_in({first_row, masks_.count, blocks_, down_, rank_, thin_.get()}, part * kPart,
                    std::min(rank_, (part + 1) * kPart));
}

void Lora::add(int64_t row, int64_t count, int64_t tile, int64_t columns, float* out,
               int64_t out_stride) const {
  const int64_t first = std::max(row, masks_.first);
  if (!is_active() || first >= row + count) return;
  kernels().thin_out({thin_.get() + (first - masks_.first) * rank_, row + count - first, rank_,
                      up_ + tile * rank_ * kTile, columns, out + (first - row) * out_stride,
                      out_stride});
}

}  // namespace bita
