// Nodes that Sights and Attention reject.
#include <thread>

#include "faults.h"

namespace bita::tests {
namespace {

constexpr const char* kNoStep = "sights do not belong to a step that this thread is running";

const Adds sights_shapes("Sights rejects attributes and shapes that do not fit", [] {
  Random random(53);
  const Faults faults(small_step(random).sights_node());
  faults.size("group");
  faults.attribute("window", -1, "window is negative");
  faults.attribute("window", INT64_MIN, "window is negative");
  faults.attribute("window", 1.0f, "window");
  faults.no_attribute("window");
  for (const char* name : {"positions", "row_slots", "row_texts", "sees", "sees_prefix",
                           "text_lengths", "text_pages", "prefix_pages", "prefix_length"})
    faults.missing(name);
  faults.reshaped("positions", {4}, "[1, ?]");
  faults.reshaped("positions", {2, 4}, "[1, ?]");
  faults.fed("positions", ints_of({1, 3}), "row_slots has the shape [4], not [3]");
  faults.reshaped("row_slots", {3}, "[4]");
  faults.reshaped("row_texts", {5}, "[4]");
  faults.reshaped("sees", {4, 3}, "[4, 4]");
  faults.reshaped("sees", {16}, "[4, 4]");
  faults.reshaped("sees_prefix", {1, 4}, "[4]");
  faults.reshaped("text_lengths", {1, 2}, "[?]");
  faults.fed("text_lengths", ints_of({3}), "text_pages has the shape [2, 3], not [3, ?]");
  faults.reshaped("text_pages", {6}, "[2, ?]");
  faults.fed("text_pages", ints_of({2, 0}), "row_slots has 20, not 0 to -1");
  faults.reshaped("prefix_pages", {1, 1}, "[?]");
  faults.reshaped("prefix_length", {0}, "[1]");
  faults.reshaped("prefix_length", {}, "[1]");
  Node bad = faults.good();
  bad["text_lengths"] = ints_of({0});
  bad["text_pages"] = ints_of({0, INT64_MAX});
  faults.broken(bad, "row_texts has 0, not 0 to -1");
  faults.unused(0, "sights");
});

const Adds sights_numbers("Sights rejects places that do not exist", [] {
  Random random(58);
  const Faults faults(small_step(random).sights_node());
  for (const char* name : {"positions", "row_slots", "row_texts", "text_lengths", "text_pages",
                           "prefix_pages", "prefix_length"})
    for (const int64_t number : {int64_t{-1}, INT64_MIN, INT64_MAX})
      faults.cell(name, 0, number, name + (" has " + std::to_string(number)));
  for (const char* name : {"positions", "text_pages", "prefix_pages"})
    faults.cell(name, 0, (int64_t{1} << 30) + 1,
                name + std::string(" has 1073741825, not 0 to 1073741824"));
  faults.cell("row_slots", 1, int64_t{48}, "row_slots has 48, not 0 to 47");
  faults.cell("row_slots", 0, int64_t{19}, "row 0 would overwrite its text");
  faults.cell("row_texts", 3, int64_t{2}, "row_texts has 2, not 0 to 1");
  faults.cell("text_lengths", 0, int64_t{21}, "row 0 would overwrite its text");
  faults.cell("text_lengths", 0, int64_t{49}, "text_lengths has 49, not 0 to 48");
  faults.cell("prefix_length", 0, int64_t{17}, "prefix_length has 17, not 0 to 16");
  // row 1, in slot 21, sees itself and row 0
  for (const int64_t slot : {21, 30})
    faults.cell("row_slots", 0, slot, "row 1 sees row 1 of another text, or out of order");
  faults.cell("sees", 3, uint8_t{1}, "row 0 sees row 3 of another text");
});

const Adds sees_nothing("Sights rejects a row that sees nothing", [] {
  Random random(57);
  const Faults faults(small_step(random).sights_node());
  Node bad = faults.good();
  bad["sees"].set(10, uint8_t{0});
  bad["sees_prefix"].set(2, uint8_t{0});
  bad["text_lengths"].set(1, int64_t{0});
  faults.broken(bad, "row 2 sees nothing");
  bad["sees_prefix"].set(2, uint8_t{1});
  Node sees_prefix = bad;
  expect(fault_of(sees_prefix).empty(), "a row may see only the prefix");
  bad["prefix_length"].set(0, int64_t{0});
  faults.broken(bad, "row 2 sees nothing");
});

const Adds one_place("Sights rejects two rows that are written to one slot", [] {
  Random random(74);
  const Faults faults(small_step(random).sights_node());
  const std::vector<int64_t> pages = Node(faults.good())["text_pages"].cells<int64_t>();
  Node bad = faults.good();
  bad["row_slots"].set(1, int64_t{20});
  bad["sees"].set(4, uint8_t{0});  // row 1 sees only itself
  faults.broken(bad, "two rows write to slot 4 of page " + std::to_string(pages[1]));
  // row 1 is in slot 21 of its text, row 2 in slot 5 of another one
  faults.cell("text_pages", 3, pages[1],
              "two rows write to slot 5 of page " + std::to_string(pages[1]));
});

const Adds attention("Attention rejects nodes that do not fit", [] {
  Random random(59);
  const Step step = small_step(random);
  const Faults faults(step.node());
  attention_faults(faults);
  sights_faults(faults, step);
  faults.attribute("num_heads", 3, "qkv has the shape [4, 128], not [?, 160]");
  faults.attribute("num_heads", INT32_MAX, "qkv has the shape [4, 128], not [?, 68719476768]");
  faults.missing("qkv");
  faults.reshaped("qkv", {4, 127}, "[?, 128]");
  faults.reshaped("qkv", {4, 1, 128}, "[?, 128]");
  for (const int64_t rows : {0, 3, 5})
    faults.fed("qkv", floats_of({rows, 128}),
               "sights are for 4 rows, but the input has " + std::to_string(rows));
  faults.unused(0, "quantized");
  faults.unused(1, "present");
});

const Adds any_position("Without angles a row may have any position", [] {
  Random random(69);
  Step step = small_step(random);
  step.rows[0].position = int64_t{1} << 30;
  Node node = step.node();
  node["cos"] = node["sin"] = {};
  expect(fault_of(node).empty(), "the last position");
});

const Adds of_threads("Sights belong to the thread that found them", [] {
  Random random(70);
  const Step step = small_step(random);
  Value of_other;
  const Faults faults(step.node());
  std::string fault;
  std::thread other([&] {
    Node node = faults.good();
    of_other = step.sights();
    fault = fault_of(node);
  });
  other.join();
  expect(fault.find(kNoStep) != std::string::npos, "another thread reports '" + fault + "'");
  faults.fed("sights", of_other, kNoStep);
});

const Adds overwritten("Sights are kept until 16 others were found", [] {
  Random random(71);
  const Step step = small_step(random);
  const Faults faults(step.node());
  Node works = faults.good();
  for (int i = 0; i < 15; ++i) step.sights();
  expect(fault_of(works).empty(), "sights that 15 others came after");
  step.sights();
  faults.broken(faults.good(), kNoStep);
});

}  // namespace
}  // namespace bita::tests
