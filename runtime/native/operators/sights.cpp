#include "sights.h"

#include <algorithm>

#include "scratch.h"

namespace bita {
namespace {

constexpr int64_t kMostSlots = int64_t{1} << 30;

void check_range(const char* name, const Tensor& tensor, int64_t most) {
  const int64_t* values = tensor.as<int64_t>();
  for (int64_t i = 0; i < tensor.size(); ++i)
    if (values[i] < 0 || values[i] > most)
      throw std::runtime_error(std::string(name) + " has " + std::to_string(values[i]) +
                               ", not 0 to " + std::to_string(most));
}

}  // namespace

StepPlace::StepPlace(const NodeRun& node, size_t first, int64_t rows, int64_t num_pages)
    : positions(node.input(first)),
      row_slots(node.input(first + 1)),
      row_texts(node.input(first + 2)),
      sees(node.input(first + 3)),
      sees_prefix(node.input(first + 4)),
      text_lengths(node.input(first + 5)),
      text_pages(node.input(first + 6)),
      prefix_pages(node.input(first + 7)),
      num_rows(rows) {
  const Tensor length = node.input(first + 8);
  check_dims("positions", positions, {1, num_rows});
  check_dims("row_slots", row_slots, {num_rows});
  check_dims("row_texts", row_texts, {num_rows});
  check_dims("sees", sees, {num_rows, num_rows});
  check_dims("sees_prefix", sees_prefix, {num_rows});
  check_dims("text_lengths", text_lengths, {-1});
  num_texts = text_lengths.dims[0];
  check_dims("text_pages", text_pages, {num_texts, -1});
  pages_per_text = text_pages.dims[1];
  check_dims("prefix_pages", prefix_pages, {-1});
  check_dims("prefix_length", length, {1});
  prefix_length = length.as<int64_t>()[0];
  check_range("positions", positions, kMostSlots);
  // text_pages may be as wide as it likes where there are no texts
  const int64_t text_slots = std::min(kMostSlots / 16, pages_per_text) * 16;
  check_range("row_slots", row_slots, text_slots - 1);
  check_range("row_texts", row_texts, num_texts - 1);
  check_range("text_lengths", text_lengths, text_slots);
  check_range("text_pages", text_pages, num_pages - 1);
  check_range("prefix_pages", prefix_pages, num_pages - 1);
  check_range("prefix_length", length, prefix_pages.dims[0] * 16);
  for (int64_t row = 0; row < num_rows; ++row)
    if (slot(row) < this->length(text(row)))
      throw std::runtime_error("row " + std::to_string(row) + " would overwrite its text");
}

namespace {

// Write the slots that a row sees to `tail`; returns how many there are.
int64_t list_tail(const StepPlace& place, int64_t row, int32_t* tail) {
  const int64_t text = place.text(row);
  int64_t count = 0, last = -1;
  for (int64_t other = 0; other < place.num_rows; ++other) {
    if (!place.does_see(row, other)) continue;
    const int64_t slot = place.slot(other);
    if (place.text(other) != text || slot <= last)
      throw std::runtime_error("row " + std::to_string(row) + " sees row " + std::to_string(other) +
                               " of another text, or out of order");
    tail[count++] = static_cast<int32_t>(slot);
    last = slot;
  }
  if (!count && !place.length(text) && !place.does_see_prefix(row))
    throw std::runtime_error("row " + std::to_string(row) + " sees nothing");
  return count;
}

// Keys at the beginning of a tail whose slots are their positions.
int64_t count_common(const Sight& sight, int64_t length) {
  int64_t common = 0;
  while (length + common < sight.stop && sight.tail[common] == length + common) ++common;
  return common;
}

int64_t list_blocks(const StepPlace& place, const Sight* sights, int64_t most_rows,
                    RowBlock* blocks) {
  int64_t count = 0;
  for (int64_t row = 0; row < place.num_rows; ++row) {
    const Sight& sight = sights[row];
    const int64_t text = place.text(row);
    const bool sees_prefix = place.does_see_prefix(row);
    const int64_t common = count_common(sight, place.length(text));
    const RowBlock* last = count ? blocks + count - 1 : nullptr;
    if (!last || last->num_rows == most_rows || last->text != text ||
        last->sees_prefix != sees_prefix)
      blocks[count++] = {row, 0, text, sees_prefix, common, sight.first, sight.stop};
    RowBlock& block = blocks[count - 1];
    ++block.num_rows;
    block.num_common = std::min(block.num_common, common);
    block.first = std::min(block.first, sight.first);
    block.stop = std::max(block.stop, sight.stop);
  }
  return count;
}

}  // namespace

Sights find_sights(const StepPlace& place, int64_t window, int64_t most_rows) {
  thread_local Scratch<int32_t> tails;
  thread_local Scratch<Sight> sights;
  thread_local Scratch<RowBlock> blocks;
  int32_t* tail = tails.take(place.num_rows * place.num_rows);
  Sight* found = sights.take(place.num_rows);
  for (int64_t row = 0; row < place.num_rows; ++row) {
    const int64_t count = list_tail(place, row, tail);
    found[row] = {window ? std::max<int64_t>(0, place.position(row) - window + 1) : 0,
                  place.length(place.text(row)) + count, tail};
    tail += count;
  }
  RowBlock* listed = blocks.take(place.num_rows);
  return {found, listed, list_blocks(place, found, most_rows, listed)};
}

}  // namespace bita
