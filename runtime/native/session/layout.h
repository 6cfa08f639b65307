// Where the rows of one step stand and what they see: the static half of a step's inputs.
#pragma once

#include <cstdint>
#include <vector>

#include "../engine/tree.h"

namespace bita {

// The placement of Q rows, R of which give tokens.
//
// offsets: [Q], position minus that of row 0. mask_index: [Q], which mask token a row holds, -1 for
// text. sees: [Q, Q], row i attends to row j. output_rows: [R].
struct Layout {
  std::vector<int64_t> offsets, mask_index, output_rows;
  std::vector<uint8_t> sees;

  int64_t num_rows() const { return static_cast<int64_t>(offsets.size()); }
  int64_t first_mask_row() const;  // rows from here on are masks or padding
  std::vector<uint8_t> sees_prefix() const;
};

// All rows of a tree, padded to at least `min_rows`; all give tokens.
Layout tree_layout(const Tree& tree, int64_t min_rows);

// A piece of the prompt, and after its last token a mask group; these give tokens.
Layout prefill_layout(int64_t num_tokens, int64_t num_masks, int64_t min_rows);

}  // namespace bita
