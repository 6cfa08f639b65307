// The keys that the rows of a step see, as lists in the order of positions.
#pragma once

#include <vector>

#include "ort.h"

namespace bita {

// The keys of one row: the slots of its text, followed by those of its tail, which are rows of the
// step.
struct Sight {
  int64_t first;  // position of the first key inside the window
  int64_t stop;   // length of the list, including keys before `first`
  int64_t tail;   // start of its tail in `tails`: the slots of the positions after the text
};

// Consecutive rows that are processed together.
struct RowBlock {
  int64_t first_row, num_rows;
  int64_t text;
  bool sees_prefix;
  int64_t num_common;   // keys of the tails that all rows share, with slots equal to positions
  int64_t first, stop;  // position of any row's first key, and one past its last
};

// A row's position, its text, and the slot and page to which it is written.
struct RowPlace {
  int64_t position, text, slot, page;
};

struct TextPages {
  int64_t length;      // slots filled before the step
  int64_t first_page;  // in `pages`
  int64_t num_pages;   // that this step reads or writes
};

// A step's rows and what they see, checked against each other.
struct StepSights {
  int64_t number = 0;  // of the step
  int64_t group;       // heads that share keys and values (grouped-query attention)
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

// Determines what the rows of a step see, once for all layers with the same window.
//
// The result stays with the thread; the output is a single number, with which `sights_of` finds it.
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

  // Raises std::runtime_error for inputs that contradict each other, a row that sees nothing or a
  // row of another text, rows whose slots do not ascend, or two rows that are written to one slot.
  void run(const NodeRun& node) const;

 private:
  int64_t group_, window_;
};

// The result of a Sights node of the same step on this thread. It is valid until the thread runs 16
// more such nodes. Raises std::runtime_error if there is no such step.
const StepSights& sights_of(const Tensor& sights);

}  // namespace bita
