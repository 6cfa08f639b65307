// The positions of a step's rows and what they see: the static half of a step's inputs.
#pragma once

#include <cstdint>
#include <vector>

#include "../engine/tree.h"

namespace bita {

// The placement of Q rows, R of which yield tokens.
//
// offsets: [Q], position relative to row 0. mask_index: [Q], index of the mask token in a row, -1
// for text. sees: [Q, Q], whether row i attends to row j. output_rows: [R].
struct Layout {
  std::vector<int64_t> offsets, mask_index, output_rows;
  std::vector<uint8_t> sees;

  int64_t num_rows() const { return static_cast<int64_t>(offsets.size()); }
  int64_t first_mask_row() const;  // this row and those after it are masks or padding
  std::vector<uint8_t> sees_prefix() const;
};

// The rows of a tree, padded to at least `min_rows`; all yield tokens.
Layout tree_layout(const Tree& tree, int64_t min_rows);

// A piece of the prompt, followed by a mask group; its last token and the masks yield tokens.
Layout prefill_layout(int64_t num_tokens, int64_t num_masks, int64_t min_rows);

}  // namespace bita
