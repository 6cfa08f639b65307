// What the rows of a step see, as lists of keys by position.
#pragma once

#include <vector>

#include "ort.h"

namespace bita {

// The keys of one row: the slots of its text, then those of its tail, which are the step's rows.
struct Sight {
  int64_t first;  // position of the first key that the window lets through
  int64_t stop;   // keys of the list, those before `first` included
  int64_t tail;   // where the tail starts in `tails`: slots of the positions from the text's length
};

// Rows side by side that are attended to together.
struct RowBlock {
  int64_t first_row, num_rows;
  int64_t text;
  bool sees_prefix;
  int64_t num_common;   // keys of the tails that all rows have at the same slots as positions
  int64_t first, stop;  // positions of the first and after the last key of any row
};

// A row's place: its position, its text, and the slot and page it is written to.
struct RowPlace {
  int64_t position, text, slot, page;
};

struct TextPages {
  int64_t length;      // slots that were filled before the step
  int64_t first_page;  // in `pages`
  int64_t num_pages;   // that this step reads or writes
};

// A step's rows and what they see, checked against each other.
struct StepSights {
  int64_t number = 0;  // of the step
  int64_t group;       // heads that share keys and values
  int64_t prefix_length;
  int64_t largest_page, largest_position;
  std::vector<RowPlace> places;
  std::vector<Sight> rows;
  std::vector<int32_t> tails;
  std::vector<RowBlock> blocks;
  std::vector<int64_t> block_of_row;
  std::vector<TextPages> texts;
  std::vector<int64_t> pages;         // of all texts
  std::vector<int64_t> prefix_pages;  // of the prefix's slots

  int64_t num_rows() const { return static_cast<int64_t>(rows.size()); }
};

// Finds out what the rows of a step see, once for all layers with the same window.
//
// What it found stays with the thread; its output, one number, is how `sights_of` finds it again.
class Sights {
 public:
  static constexpr const char* kName = "Sights";
  static constexpr std::array<Port, 9> kInputs = {{{"positions", kInt64},
                                                   {"row_slots", kInt64},
                                                   {"row_texts", kInt64},
                                                   {"sees", kBool},
                                                   {"sees_prefix", kBool},
                                                   {"text_lengths", kInt64},
                                                   {"text_pages", kInt64},
                                                   {"prefix_pages", kInt64},
                                                   {"prefix_length", kInt64}}};
  static constexpr std::array<Port, 1> kOutputs = {{{"sights", kInt64}}};

  explicit Sights(const NodeInfo& info);

  // Raises std::runtime_error for inputs that do not fit each other, a row that sees nothing or a
  // row of another text, rows whose slots do not ascend, or two rows that are written to one slot.
  void run(const NodeRun& node) const;

 private:
  int64_t group_, window_;
};

// What a node Sights of the same step found on this thread. It is valid until the thread runs 16
// more of them. Raises std::runtime_error if there is no such step.
const StepSights& sights_of(const Tensor& sights);

}  // namespace bita
