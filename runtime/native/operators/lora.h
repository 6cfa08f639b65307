// LoRA for the mask rows of a step: adds input @ down @ up to the outputs.
#pragma once

#include <memory>

#include "../kernels/kernels.h"
#include "phases.h"

namespace bita {

// The last rows of a step, to which LoRA applies.
struct MaskRows {
  bool is_given;  // false if the node has no LoRA
  int64_t first, count;
};

// Read the input `first_mask_row` [1] of a node. Raises std::runtime_error.
MaskRows mask_rows(const NodeRun& node, size_t first_mask_row, int64_t num_rows);

class Lora {
 public:
  // down: index of that input of the node, [L, r, 32 * blocks]; up [L, tiles, r, 16] follows it.
  // Both are float16, and zero beyond the last input and output. layer: the index whose slices are
  // used. Without mask rows or with r = 0 nothing is read. Raises std::runtime_error for shapes
  // that do not match.
  Lora(const NodeRun& node, const MaskRows& masks, size_t down, int64_t layer, int64_t blocks,
       int64_t tiles);

  // The phase that computes input @ down for the mask rows of the quantized `rows`.
  auto read(const uint8_t* rows) {
    return Phase{is_active() ? (rank_ + kPart - 1) / kPart : 0,
                 [=](int64_t part) { read_part(rows, part); }};
  }

  // Whether there are mask rows and LoRA for them.
  bool is_active() const { return thin_ != nullptr; }

  // Add LoRA to `columns` outputs, starting with the first one of a tile, in `count` rows, starting
  // at `row`. Rows are out_stride apart.
  void add(int64_t row, int64_t count, int64_t tile, int64_t columns, float* out,
           int64_t out_stride) const;

 private:
  static constexpr int64_t kPart = 4;  // columns of down that a thread takes at a time

  void read_part(const uint8_t* rows, int64_t part);

  MaskRows masks_;
  int64_t blocks_, rank_ = 0;
  const uint16_t *down_ = nullptr, *up_ = nullptr;  // of the layer
  std::unique_ptr<float[]> thin_;  // [mask rows, r]; null if there is nothing to add
};

}  // namespace bita
