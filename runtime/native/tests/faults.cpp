#include "faults.h"

#include "../kernels/kernels.h"

namespace bita::tests {
namespace {

std::string shape_text(const std::vector<int64_t>& dims) {
  std::string text;
  for (const int64_t dim : dims) text += (text.empty() ? "" : ", ") + std::to_string(dim);
  return "[" + text + "]";
}

}  // namespace

void Faults::reshaped(const std::string& name, const std::vector<int64_t>& dims,
                      const std::string& wanted) const {
  Node bad = good_;
  bad[name] = zeros(bad[name].type, dims);
  broken(std::move(bad), name + " has the shape " + shape_text(dims) + ", not " + wanted);
}

void Faults::size(const std::string& name) const {
  attribute(name, 0, name + " is 0");
  attribute(name, -1, name + " is -1");
  attribute(name, int64_t{1} << 31, name + " is 2147483648");
  attribute(name, INT64_MAX, name + " is 9223372036854775807");
  attribute(name, INT64_MIN, name + " is -9223372036854775808");
  attribute(name, 1.0f, name);
  no_attribute(name);
}

void Faults::real(const std::string& name) const {
  attribute(name, kNaN, name + " is not finite");
  attribute(name, kInfinity, name + " is not finite");
  attribute(name, 1, name);
  no_attribute(name);
}

void weight_faults(const Faults& faults, const std::string& prefix, int64_t outputs,
                   int64_t inputs) {
  const int64_t tiles = num_tiles(outputs), blocks = num_blocks(inputs);
  const std::string bits = prefix + "bits", values = prefix + "values", scales = prefix + "scales",
                    minima = prefix + "minima";
  const std::string in_bytes = shape_text({tiles, blocks, 256});
  const std::string in_halves = shape_text({tiles, blocks, 16});
  faults.attribute(bits, 5, "bits is 5");
  faults.attribute(bits, -4, "bits is -4");
  faults.attribute(
      bits, 8, values + " has the shape " + in_bytes + ", not " + shape_text({tiles, blocks, 512}));
  faults.no_attribute(bits);
  for (const std::string& name : {values, scales}) faults.missing(name);
  for (const std::string& name : {values, scales, minima}) faults.not_constant(name);
  faults.reshaped(values, {tiles, 256, blocks}, in_bytes);
  faults.reshaped(values, {tiles, blocks * 256}, in_bytes);
  faults.reshaped(values, {0, blocks, 256}, in_bytes);
  faults.fed(values, bytes_of({tiles, blocks, 1, 1, 256}), "a tensor has 5 dimensions");
  faults.reshaped(scales, {tiles, blocks, 8}, in_halves);
  faults.reshaped(scales, {tiles - 1, blocks, 16}, in_halves);
  faults.reshaped(minima, {tiles, blocks - 1, 16}, in_halves);
  faults.reshaped(minima, {0}, in_halves);
}

void vector_faults(const Faults& faults, const std::string& name, int64_t size) {
  const std::vector<std::vector<int64_t>> others = {{size - 1}, {1, size}, {0}, {}};
  for (const std::vector<int64_t>& dims : others) faults.reshaped(name, dims, shape_text({size}));
  faults.not_constant(name);
}

void lora_faults(const Faults& faults, const std::string& prefix, int64_t tiles, int64_t inputs) {
  const std::string down = prefix + "down", up = prefix + "up";
  const int64_t width = num_blocks(inputs) * kBlock, layers = kThinLayers;
  const std::string in_down = "[?, ?, " + std::to_string(width) + "]";
  const std::string in_up = shape_text({layers, tiles, 2, kTile});
  for (const std::string& name : {down, up}) faults.fed(name, {}, "must be given together");
  faults.fed_both(down, up, {}, "must be given together");
  for (const std::vector<int64_t>& dims : std::vector<std::vector<int64_t>>{
           {layers, 2, width - 1}, {2, width}, {layers, 2, 1, width}, {}})
    faults.reshaped(down, dims, in_down);
  for (const int64_t rank : {3, 0}) {
    std::string fault = up;
    fault.append(" has the shape ").append(in_up).append(", not ");
    fault += shape_text({layers, tiles, rank, kTile});
    faults.fed(down, halves_of({layers, rank, width}), fault);
  }
  for (const std::vector<int64_t>& dims :
       std::vector<std::vector<int64_t>>{{layers - 1, tiles, 2, kTile},
                                         {layers, tiles - 1, 2, kTile},
                                         {layers, tiles, 2, kTile - 1},
                                         {layers, tiles, 2 * kTile},
                                         {}})
    faults.reshaped(up, dims, in_up);
}

void layer_faults(const Faults& faults, const std::string& down) {
  for (const int64_t layer : {int64_t{-1}, INT64_MIN})
    faults.attribute("layer", layer, "layer is " + std::to_string(layer));
  for (const int64_t layer : {kThinLayers, INT64_MAX})
    faults.attribute("layer", layer,
                     down + " has 3 layers, but this is layer " + std::to_string(layer));
  faults.attribute("layer", 1.0f, "layer");
  faults.no_attribute("layer");
}

void mask_row_faults(const Faults& faults) {
  faults.fed("first_mask_row", {}, "must be given together");
  for (const int64_t row : {int64_t{-1}, INT64_MIN})
    faults.cell("first_mask_row", 0, row, "first_mask_row is negative");
  const std::vector<std::vector<int64_t>> others = {{}, {2}, {0}, {1, 1}};
  for (const std::vector<int64_t>& dims : others) faults.reshaped("first_mask_row", dims, "[1]");
}

Step small_step(Random& random) {
  Shape shape;
  shape.has_norms = true;
  Step step = random_step(random, shape, {{20, 5}, {2, 2}, 10, 0, true});
  for (Text& text : step.texts) text.pages.resize(3, text.pages[0]);
  return step;
}

void attention_faults(const Faults& faults) {
  for (const char* name : {"num_heads", "kv_num_heads", "head_dim"}) faults.size(name);
  for (const char* name : {"scale", "softcap", "epsilon"}) faults.real(name);
  for (const int64_t heads : {3, INT32_MAX})
    faults.attribute("kv_num_heads", heads, "num_heads is not a multiple of kv_num_heads");
  faults.attribute("head_dim", 16, "q_norm has the shape [32], not [16]");
  for (const int64_t size : {24, 1040, INT32_MAX}) {
    Node bad = faults.good();
    bad["q_norm"] = bad["k_norm"] = {};
    bad.set("head_dim", size);
    faults.broken(bad, "head_dim is " + std::to_string(size) + ", not a multiple of 16 up to 1024");
  }
  for (const char* name : {"q_norm", "k_norm"}) vector_faults(faults, name, 32);
  for (const char* name : {"cos", "sin"}) faults.not_constant(name);
  for (const char* name : {"cos", "sin"})
    faults.fed(name, {}, "cos and sin must be given together");
  faults.reshaped("sin", {512, 7}, "[512, 8]");
  faults.reshaped("cos", {512}, "[?, ?]");
  faults.fed_both("cos", "sin", floats_of({4, 17}), "cos is wider than half a head");
  faults.fed_both("cos", "sin", floats_of({0, INT64_MAX / 2 + 2}), "wider than half a head");
  faults.fed_both("cos", "sin", floats_of({0, 8}),
                  "position 21 is not one of the 0 positions of the graph");
}

namespace {

void cache_faults(const Faults& faults) {
  faults.missing("past");
  const std::string wanted = "[?, 1, 2, 512]";
  for (const std::vector<int64_t>& dims : std::vector<std::vector<int64_t>>{
           {40, 2, 2, 512}, {40, 1, 2, 256}, {40, 1, 1, 512}, {40, 1024}})
    faults.reshaped("past", dims, wanted);
  faults.fed("past", ints_of({40, 1, 2, 512}), "past is neither float16 nor float32");
  faults.fed("past", bytes_of({40, 1, 2, 512}), "past is neither float16 nor float32");
  faults.fed("past", floats_of({0, 1, 2, 512}), " is not one of the cache's 0");
  faults.fed("past", floats_of({3, 1, 2, 512}), " is not one of the cache's 3");
}

}  // namespace

void sights_faults(const Faults& faults, const Step& step) {
  cache_faults(faults);
  faults.missing("sights");
  const std::vector<std::vector<int64_t>> others = {{}, {0}, {2}, {1, 1}};
  for (const std::vector<int64_t>& dims : others) faults.reshaped("sights", dims, "[1]");
  const int64_t number = Node(faults.good())["sights"].cells<int64_t>()[0];
  for (const int64_t other : {int64_t{0}, int64_t{-1}, -number, number + 1, INT64_MAX, INT64_MIN})
    faults.cell("sights", 0, other, "sights do not belong to a step that this thread is running");
  const auto with = [&](Node sights) {
    Node bad = faults.good();
    bad["sights"] = run(sights)[0];
    return bad;
  };
  const auto changed = [&](const char* name, int64_t index, int64_t cell) {
    Node sights = step.sights_node();
    sights[name].set(index, cell);
    return with(sights);
  };
  faults.broken(changed("positions", 1, 512),
                "position 512 is not one of the 512 positions of the graph");
  faults.broken(changed("positions", 3, int64_t{1} << 30),
                "position 1073741824 is not one of the 512");
  faults.broken(changed("text_pages", 0, 40), "page 40 is not one of the cache's 40");
  faults.broken(changed("text_pages", 3, int64_t{1} << 30), "page 1073741824 is not one of");
  faults.broken(changed("prefix_pages", 0, 40), "page 40 is not one of the cache's 40");
  Node unread = changed("text_pages", 5, 40);
  expect(fault_of(unread).empty(), "a page that is not read may be outside the cache");
  Node sights = step.sights_node();
  sights.set("group", 1);
  faults.broken(with(sights), "sights are for groups of 1 heads, not of 2");
  Step shorter = step;
  shorter.rows.pop_back();
  faults.broken(with(shorter.sights_node()), "sights are for 3 rows, but the input has 4");
}

}  // namespace bita::tests
