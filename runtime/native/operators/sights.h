// What the rows of a step see, as lists of keys by position.
#pragma once

#include "ort.h"

namespace bita {

// Inputs that place the rows of a step; see docs/native.md. Checked against each other.
struct StepPlace {
  Tensor positions, row_slots, row_texts, sees, sees_prefix, text_lengths, text_pages, prefix_pages;
  int64_t num_rows, num_texts, pages_per_text, prefix_length;

  // Inputs `first` on of a node, for `num_rows` rows and a cache of `num_pages` pages. Raises
  // std::runtime_error for anything that would read or write beyond them.
  StepPlace(const NodeRun& node, size_t first, int64_t num_rows, int64_t num_pages);

  int64_t position(int64_t row) const { return positions.as<int64_t>()[row]; }
  int64_t slot(int64_t row) const { return row_slots.as<int64_t>()[row]; }
  int64_t text(int64_t row) const { return row_texts.as<int64_t>()[row]; }
  int64_t length(int64_t text) const { return text_lengths.as<int64_t>()[text]; }
  bool does_see(int64_t row, int64_t other) const {
    return sees.as<uint8_t>()[row * num_rows + other] != 0;
  }
  bool does_see_prefix(int64_t row) const {
    return prefix_length && sees_prefix.as<uint8_t>()[row] != 0;
  }
  // The page of a slot of a text.
  int64_t page(int64_t text, int64_t slot) const {
    return text_pages.as<int64_t>()[text * pages_per_text + slot / 16];
  }
};

// The keys of one row: the slots of its text, then `tail`, slots of the step's rows.
struct Sight {
  int64_t first;        // position of the first key that the window lets through
  int64_t stop;         // keys of the list, those before `first` included
  const int32_t* tail;  // slots of the positions from the text's length on
};

// Rows side by side that are attended to together.
struct RowBlock {
  int64_t first_row, num_rows;
  int64_t text;
  bool sees_prefix;
  int64_t num_common;   // keys of the tails that all rows have at the same slots as positions
  int64_t first, stop;  // positions of the first and after the last key of any row
};

// What all rows of a step see. It is valid until the next one on the same thread.
struct Sights {
  const Sight* rows;
  const RowBlock* blocks;
  int64_t num_blocks;
};

// window: 0 for none. most_rows: of a block. Raises std::runtime_error for a row that sees nothing,
// a row of another text, or rows whose slots do not ascend.
Sights find_sights(const StepPlace& place, int64_t window, int64_t most_rows);

}  // namespace bita
