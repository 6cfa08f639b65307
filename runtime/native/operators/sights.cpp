#include "sights.h"

#include <algorithm>

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
  check_range("row_slots", row_slots, std::min(kMostSlots, pages_per_text * 16 - 1));
  check_range("row_texts", row_texts, num_texts - 1);
  check_range("text_lengths", text_lengths, std::min(kMostSlots, pages_per_text * 16));
  check_range("text_pages", text_pages, num_pages - 1);
  check_range("prefix_pages", prefix_pages, num_pages - 1);
  check_range("prefix_length", length, prefix_pages.dims[0] * 16);
  for (int64_t row = 0; row < num_rows; ++row)
    if (slot(row) < this->length(text(row)))
      throw std::runtime_error("row " + std::to_string(row) + " would overwrite its text");
}

std::vector<Sight> sights(const StepPlace& place, int64_t window) {
  std::vector<Sight> found(static_cast<size_t>(place.num_rows));
  for (int64_t row = 0; row < place.num_rows; ++row) {
    Sight& sight = found[static_cast<size_t>(row)];
    const int64_t text = place.text(row), length = place.length(text);
    for (int64_t other = 0; other < place.num_rows; ++other) {
      if (!place.does_see(row, other)) continue;
      const int64_t slot = place.slot(other);
      if (place.text(other) != text || (!sight.tail.empty() && slot <= sight.tail.back()))
        throw std::runtime_error("row " + std::to_string(row) + " sees row " +
                                 std::to_string(other) + " of another text, or out of order");
      sight.tail.push_back(static_cast<int32_t>(slot));
    }
    if (sight.tail.empty() && length == 0 && !place.does_see_prefix(row))
      throw std::runtime_error("row " + std::to_string(row) + " sees nothing");
    sight.stop = length + static_cast<int64_t>(sight.tail.size());
    sight.first = window ? std::max<int64_t>(0, place.position(row) - window + 1) : 0;
  }
  return found;
}

std::vector<RowBlock> row_blocks(const StepPlace& place, const std::vector<Sight>& sights,
                                 int64_t most_rows) {
  std::vector<RowBlock> blocks;
  for (int64_t row = 0; row < place.num_rows; ++row) {
    const Sight& sight = sights[static_cast<size_t>(row)];
    const int64_t text = place.text(row), length = place.length(text);
    const bool sees_prefix = place.does_see_prefix(row);
    int64_t common = 0;
    while (length + common < sight.stop &&
           sight.tail[static_cast<size_t>(common)] == length + common)
      ++common;
    if (blocks.empty() || blocks.back().num_rows == most_rows || blocks.back().text != text ||
        blocks.back().sees_prefix != sees_prefix)
      blocks.push_back({row, 0, text, sees_prefix, common, sight.first, sight.stop});
    RowBlock& block = blocks.back();
    ++block.num_rows;
    block.num_common = std::min(block.num_common, common);
    block.first = std::min(block.first, sight.first);
    block.stop = std::max(block.stop, sight.stop);
  }
  return blocks;
}

}  // namespace bita
