#include "sights.h"

#include <algorithm>
#include <array>
#include <atomic>

#include "../kernels/kernels.h"

namespace bita {
namespace {

constexpr int64_t kMaxSlots = int64_t{1} << 30;
constexpr size_t kKept = 16;  // steps that a thread remembers; more than a graph has windows

struct KeptSights {
  std::array<StepSights, kKept> all;
  size_t next = 0;  // the entry to overwrite next
};

KeptSights& kept_sights() {
  thread_local KeptSights kept;
  return kept;
}

void check_range(const char* name, const Tensor& tensor, int64_t most) {
  const int64_t* values = tensor.as<int64_t>();
  for (int64_t i = 0; i < tensor.size(); ++i)
    if (values[i] < 0 || values[i] > most)
      throw std::runtime_error(std::string(name) + " has " + std::to_string(values[i]) +
                               ", not 0 to " + std::to_string(most));
}

// Inputs that describe where a step's rows belong; see docs/native.md. Checked against each other.
struct StepInputs {
  Tensor positions, row_slots, row_texts, sees, sees_prefix, text_lengths, text_pages, prefix_pages;
  int64_t num_rows, num_texts, pages_per_text, prefix_length;

  explicit StepInputs(const NodeRun& node)
      : positions(node.input(0)),
        row_slots(node.input(1)),
        row_texts(node.input(2)),
        sees(node.input(3)),
        sees_prefix(node.input(4)),
        text_lengths(node.input(5)),
        text_pages(node.input(6)),
        prefix_pages(node.input(7)) {
    const Tensor prefix = node.input(8);
    check_shapes(prefix);
    prefix_length = prefix.as<int64_t>()[0];
    // text_pages may have any width if there are no texts
    const int64_t text_slots = std::min(kMaxSlots / kPage, pages_per_text) * kPage;
    check_range("positions", positions, kMaxSlots);
    check_range("row_slots", row_slots, text_slots - 1);
    check_range("row_texts", row_texts, num_texts - 1);
    check_range("text_lengths", text_lengths, text_slots);
    check_range("text_pages", text_pages, kMaxSlots);
    check_range("prefix_pages", prefix_pages, kMaxSlots);
    check_range("prefix_length", prefix, prefix_pages.dims[0] * kPage);
    for (int64_t row = 0; row < num_rows; ++row)
      if (slot(row) < length(text(row)))
        throw std::runtime_error("row " + std::to_string(row) + " would overwrite its text");
  }

  int64_t slot(int64_t row) const { return row_slots.as<int64_t>()[row]; }
  int64_t text(int64_t row) const { return row_texts.as<int64_t>()[row]; }
  int64_t length(int64_t text) const { return text_lengths.as<int64_t>()[text]; }
  const int64_t* pages(int64_t text) const {
    return text_pages.as<int64_t>() + text * pages_per_text;
  }
  bool does_see(int64_t row, int64_t other) const {
    return sees.as<uint8_t>()[row * num_rows + other] != 0;
  }
  bool does_see_prefix(int64_t row) const {
    return prefix_length && sees_prefix.as<uint8_t>()[row] != 0;
  }

 private:
  void check_shapes(const Tensor& prefix) {
    check_dims("positions", positions, {1, -1});
    num_rows = positions.dims[1];
    check_dims("row_slots", row_slots, {num_rows});
    check_dims("row_texts", row_texts, {num_rows});
    check_dims("sees", sees, {num_rows, num_rows});
    check_dims("sees_prefix", sees_prefix, {num_rows});
    check_dims("text_lengths", text_lengths, {-1});
    num_texts = text_lengths.dims[0];
    check_dims("text_pages", text_pages, {num_texts, -1});
    pages_per_text = text_pages.dims[1];
    check_dims("prefix_pages", prefix_pages, {-1});
    check_dims("prefix_length", prefix, {1});
  }
};

// Append the slots that a row sees to `tails`; returns their number.
int64_t list_tail(const StepInputs& step, int64_t row, std::vector<int32_t>& tails) {
  const int64_t text = step.text(row);
  int64_t count = 0, last = -1;
  for (int64_t other = 0; other < step.num_rows; ++other) {
    if (!step.does_see(row, other)) continue;
    const int64_t slot = step.slot(other);
    if (step.text(other) != text || slot <= last)
      throw std::runtime_error("row " + std::to_string(row) + " sees row " + std::to_string(other) +
                               " of another text, or out of order");
    tails.push_back(static_cast<int32_t>(slot));
    ++count;
    last = slot;
  }
  if (!count && !step.length(text) && !step.does_see_prefix(row))
    throw std::runtime_error("row " + std::to_string(row) + " sees nothing");
  return count;
}

void list_rows(const StepInputs& step, int64_t window, StepSights& found) {
  found.rows.clear();
  found.tails.clear();
  found.places.clear();
  found.largest_position = 0;
  for (int64_t row = 0; row < step.num_rows; ++row) {
    const int64_t position = step.positions.as<int64_t>()[row], text = step.text(row);
    const auto tail = static_cast<int64_t>(found.tails.size());
    const int64_t stop = step.length(text) + list_tail(step, row, found.tails);
    found.rows.push_back({window ? std::max<int64_t>(0, position - window + 1) : 0, stop, tail});
    const int64_t slot = step.slot(row);
    found.places.push_back({position, text, slot, step.pages(text)[slot / kPage]});
    found.largest_position = std::max(found.largest_position, position);
  }
}

// Reject rows that would write to the same slot of a page, even for different texts.
void check_places(const StepSights& found) {
  thread_local std::vector<int64_t> slots;  // numbered across all pages
  slots.clear();
  for (const RowPlace& place : found.places)
    slots.push_back(place.page * kPage + place.slot % kPage);
  std::sort(slots.begin(), slots.end());
  const auto twice = std::adjacent_find(slots.begin(), slots.end());
  if (twice != slots.end())
    throw std::runtime_error("two rows write to slot " + std::to_string(*twice % kPage) +
                             " of page " + std::to_string(*twice / kPage));
}

// The number of keys at the beginning of a row's tail whose slots equal their positions.
int64_t count_common(const StepSights& found, const Sight& sight, int64_t length) {
  const int32_t* tail = found.tails.data() + sight.tail;
  int64_t common = 0;
  while (length + common < sight.stop && tail[common] == length + common) ++common;
  return common;
}

void list_blocks(const StepInputs& step, StepSights& found) {
  const int64_t max_rows = std::max<int64_t>(1, kMaxQueries / found.group);
  found.blocks.clear();
  found.block_of_row.clear();
  for (int64_t row = 0; row < step.num_rows; ++row) {
    const Sight& sight = found.rows[static_cast<size_t>(row)];
    const int64_t text = step.text(row);
    const bool sees_prefix = step.does_see_prefix(row);
    const int64_t common = count_common(found, sight, step.length(text));
    const RowBlock* last = found.blocks.empty() ? nullptr : &found.blocks.back();
    if (!last || last->num_rows == max_rows || last->text != text ||
        last->sees_prefix != sees_prefix)
      found.blocks.push_back({row, 0, text, sees_prefix, common, sight.first, sight.stop});
    RowBlock& block = found.blocks.back();
    ++block.num_rows;
    block.num_common = std::min(block.num_common, common);
    block.first = std::min(block.first, sight.first);
    block.stop = std::max(block.stop, sight.stop);
    found.block_of_row.push_back(static_cast<int64_t>(found.blocks.size()) - 1);
  }
}

int64_t page_count(int64_t slots) { return (slots + kPage - 1) / kPage; }

// List the pages that the step reads or writes, for each text and for the prefix.
void list_pages(const StepInputs& step, StepSights& found) {
  found.texts.clear();
  found.pages.clear();
  for (int64_t text = 0; text < step.num_texts; ++text)
    found.texts.push_back({step.length(text), 0, page_count(step.length(text))});
  for (const RowPlace& place : found.places) {
    int64_t& num_pages = found.texts[static_cast<size_t>(place.text)].num_pages;
    num_pages = std::max(num_pages, place.slot / kPage + 1);
  }
  for (int64_t text = 0; text < step.num_texts; ++text) {
    TextPages& used = found.texts[static_cast<size_t>(text)];
    used.first_page = static_cast<int64_t>(found.pages.size());
    found.pages.insert(found.pages.end(), step.pages(text), step.pages(text) + used.num_pages);
  }
  const int64_t* prefix = step.prefix_pages.as<int64_t>();
  found.prefix_pages.assign(prefix, prefix + page_count(step.prefix_length));
  found.largest_page = 0;
  for (const auto* pages : {&found.pages, &found.prefix_pages})
    for (const int64_t page : *pages) found.largest_page = std::max(found.largest_page, page);
}

}  // namespace

Sights::Sights(const NodeInfo& info) : group_(info.size("group")), window_(info.integer("window")) {
  if (window_ < 0) throw std::runtime_error("window is negative");
}

void Sights::run(const NodeRun& node) const {
  static std::atomic<int64_t> last_number{0};
  const StepInputs step(node);
  KeptSights& kept = kept_sights();
  StepSights& found = kept.all[kept.next];
  kept.next = (kept.next + 1) % kKept;
  found.number = 0;  // invalid until it is complete
  found.group = group_;
  found.prefix_length = step.prefix_length;
  list_rows(step, window_, found);
  check_places(found);
  list_blocks(step, found);
  list_pages(step, found);
  found.number = ++last_number;
  node.output<int64_t>(0, {1})[0] = found.number;
}

const StepSights& sights_of(const Tensor& sights) {
  check_dims("sights", sights, {1});
  const int64_t number = sights.as<int64_t>()[0];
  for (const StepSights& known : kept_sights().all)
    if (number > 0 && known.number == number) return known;
  throw std::runtime_error("sights do not belong to a step that this thread is running");
}

}  // namespace bita
