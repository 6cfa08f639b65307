// What LoRA adds to the mask rows of a step: input @ down @ up.
#pragma once

#include <memory>

#include "../kernels/kernels.h"
#include "phases.h"

namespace bita {

// The last rows of a step, which get LoRA.
struct MaskRows {
  bool is_given;  // else the node has no LoRA
  int64_t first, count;
};

// Read the input `first_mask_row` [1] of a node. Raises std::runtime_error.
MaskRows mask_rows(const NodeRun& node, size_t first_mask_row, int64_t num_rows);

class Lora {
 public:
  // down: index of that input of the node, [L, r, 32 * blocks]; up [L, tiles, r, 16] follows it;
  // both are float16, and zeros past the last input and output. layer: whose slices are taken.
  // Without mask rows or with r = 0 nothing is read. Raises std::runtime_error for shapes that do
  // not fit.
  Lora(const NodeRun& node, const MaskRows& masks, size_t down, int64_t layer, int64_t blocks,
       int64_t tiles);

  // The phase that computes input @ down of the mask rows, of quantized rows.
  auto read(const uint8_t* rows) {
    return Phase{is_active() ? (rank_ + kPart - 1) / kPart : 0,
                 [=](int64_t part) { read_part(rows, part); }};
  }

  // Whether there are mask rows, and LoRA for them.
  bool is_active() const { return thin_ != nullptr; }

  // Add to `count` rows of outputs, from `row` on, those of a row out_stride apart: to `columns` of
  // them from the first of a tile on.
  void add(int64_t row, int64_t count, int64_t tile, int64_t columns, float* out,
           int64_t out_stride) const;

 private:
  static constexpr int64_t kPart = 4;  // columns of down that a thread takes

  void read_part(const uint8_t* rows, int64_t part);

  MaskRows masks_;
  int64_t blocks_, rank_ = 0;
  const uint16_t *down_ = nullptr, *up_ = nullptr;  // the layer's
  std::unique_ptr<float[]> thin_;                   // [mask rows, r]; null where nothing is added
};

}  // namespace bita
