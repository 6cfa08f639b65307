// What operators reject, and what the library says about itself.
#include <algorithm>
#include <limits>
#include <thread>

#include "../operators/add_norm.h"
#include "../operators/embed.h"
#include "../operators/head.h"
#include "../operators/linear.h"
#include "step.h"

extern "C" OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base);
extern "C" int bita_operators_version(void);
extern "C" const char* bita_operators_road(void);
extern "C" const char* bita_operators_roads(void);
extern "C" int bita_operators_use_road(const char* name);

namespace bita::tests {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// A change to a node that works, and what the status says then.
struct Fault {
  std::function<void(Node&)> change;
  const char* text;
};

void expect_faults(const Node& good, const std::vector<Fault>& faults) {
  Node works = good;
  expect(fault_of(works).empty(), good.op + " works before it is broken");
  for (const Fault& fault : faults) {
    Node bad = good;
    fault.change(bad);
    const std::vector<Input> before = bad.inputs;
    const std::string text = fault_of(bad, {3, 1});
    expect(text.find("bita." + good.op + ": ") == 0 && text.find(fault.text) != std::string::npos,
           good.op + " says '" + text + "', not '" + fault.text + "'");
    for (size_t i = 0; i < before.size(); ++i)
      expect_same(bad.inputs[i].value.bytes, before[i].value.bytes, good.op + "'s memory");
  }
  expect(num_unreleased() == 0, good.op + " releases what it was given");
}

// An attribute has this value.
template <class T>
Fault attribute(const char* name, T number, const char* text) {
  return {[=](Node& node) { node.set(name, number); }, text};
}
Fault no_attribute(const char* name) {
  return {[=](Node& node) { node.attributes.erase(name); }, name};
}
Fault missing(const char* name) {
  return {[=](Node& node) { node[name] = {}; }, "there is no "};
}
// An input has this value, and stays constant if it is.
Fault fed(const char* name, const Value& value, const char* text) {
  return {[=](Node& node) { node[name] = value; }, text};
}
Fault cell(const char* name, int64_t index, int64_t number, const char* text) {
  return {[=](Node& node) { node[name].set(index, number); }, text};
}
Fault not_constant(const char* name) {
  return {[=](Node& node) { node.at(name).is_constant = false; }, "is not an initializer"};
}
Fault unused(size_t output) {
  return {[=](Node& node) { node.is_used[output] = false; }, " is not used"};
}
Value floats_of(const std::vector<int64_t>& dims) {
  return zeros(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, dims);
}
Value bytes_of(const std::vector<int64_t>& dims) {
  return zeros(ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, dims);
}
Value halves_of(const std::vector<int64_t>& dims) {
  return zeros(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, dims);
}
Value ints_of(const std::vector<int64_t>& dims) {
  return zeros(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, dims);
}

void append(std::vector<Fault>& all, const std::vector<Fault>& more) {
  all.insert(all.end(), more.begin(), more.end());
}

// Faults of weights [40 outputs, 70 inputs] of 4 bits: 3 tiles of 3 blocks.
std::vector<Fault> weight_faults() {
  return {
      attribute("bits", 5, "bits is 5"),
      attribute("bits", -4, "bits is -4"),
      attribute("bits", 8, "values has the shape [3, 3, 256], not [3, 3, 512]"),
      no_attribute("bits"),
      missing("values"),
      missing("scales"),
      not_constant("values"),
      not_constant("scales"),
      not_constant("minima"),
      fed("values", bytes_of({3, 256, 3}), "values has the shape [3, 256, 3], not [3, 3, 256]"),
      fed("values", bytes_of({3, 3 * 256}), "values has the shape [3, 768]"),
      fed("values", bytes_of({3, 3, 1, 1, 256}), "a tensor has 5 dimensions"),
      fed("values", zeros(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8, {3, 3, 256}), "of a wrong type"),
      fed("values", zeros(ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE, {3, 3, 256}), "of a wrong type"),
      fed("values", bytes_of({0, 3, 256}), "values has the shape [0, 3, 256]"),
      fed("scales", halves_of({3, 3, 8}), "scales has the shape [3, 3, 8], not [3, 3, 16]"),
      fed("scales", halves_of({2, 3, 16}), "scales has the shape [2, 3, 16]"),
      fed("minima", halves_of({3, 2, 16}), "minima has the shape [3, 2, 16]"),
      fed("minima", halves_of({0}), "minima has the shape [0]"),
  };
}

std::vector<Fault> size_faults(const char* name) {
  return {
      attribute(name, 0, " is 0"),
      attribute(name, -1, " is -1"),
      attribute(name, int64_t{1} << 31, " is 2147483648"),
      attribute(name, INT64_MAX, " is 9223372036854775807"),
      attribute(name, INT64_MIN, " is -9223372036854775808"),
      attribute(name, INT32_MAX, " has the shape "),
      attribute(name, 1.0f, name),
      no_attribute(name),
  };
}

std::vector<Fault> real_faults(const char* name) {
  return {
      attribute(name, kNaN, "is not a number"),
      attribute(name, kInfinity, "is not a number"),
      attribute(name, 1, name),
      no_attribute(name),
  };
}

Node linear_node(Random& random, bool is_gated) {
  Node node = is_gated ? Node::of<GatedLinear>() : Node::of<Linear>();
  node.set("in_features", 70);
  node.set("out_features", is_gated ? 20 : 40);
  node.set("activation", "silu");
  fix_weights(node, random_weights(random, is_gated ? 64 : 40, 70, 4, true));
  node.feed("quantized", quantized(random.reals(3 * 70), 70));
  node.fix("bias", floats({40}, random.reals(40)));
  node.feed("first_mask_row", ints({1}, {1}));
  node.feed("down", floats({70, 2}, random.reals(140)));
  node.feed("up", floats({2, 40}, random.reals(80)));
  return node;
}

const Adds linear_faults("Linear and GatedLinear reject what does not fit", [] {
  Random random(50);
  std::vector<Fault> faults = {
      fed("quantized", bytes_of({3, 131}),
          "the quantized rows has the shape [3, 131], not [?, 132]"),
      fed("quantized", bytes_of({396}), "the quantized rows has the shape [396]"),
      missing("quantized"),
      fed("bias", floats_of({39}), "a vector has the shape [39], not [40]"),
      fed("bias", floats_of({1, 40}), "a vector has the shape [1, 40]"),
      fed("bias", floats_of({0}), "a vector has the shape [0]"),
      not_constant("bias"),
      {[](Node& node) { node["down"] = {}; }, "belong together"},
      {[](Node& node) { node["up"] = {}; }, "belong together"},
      {[](Node& node) { node["first_mask_row"] = {}; }, "belong together"},
      fed("first_mask_row", ints({1}, {-1}), "first_mask_row is negative"),
      fed("first_mask_row", ints({1}, {INT64_MIN}), "first_mask_row is negative"),
      fed("first_mask_row", ints_of({}), "first_mask_row has the shape []"),
      fed("first_mask_row", ints_of({2}), "first_mask_row has the shape [2]"),
      fed("first_mask_row", ints_of({0}), "first_mask_row has the shape [0]"),
      fed("down", floats_of({69, 2}), "down has the shape [69, 2], not [70, ?]"),
      fed("down", floats_of({140}), "down has the shape [140]"),
      fed("down", floats_of({70, 3}), "up has the shape [2, 40], not [3, 40]"),
      fed("down", floats_of({70, 0}), "up has the shape [2, 40], not [0, 40]"),
      fed("up", floats_of({2, 39}), "up has the shape [2, 39]"),
      unused(0),
  };
  for (const char* name : {"in_features", "out_features"}) append(faults, size_faults(name));
  std::vector<Fault> linear = faults;
  append(linear, weight_faults());
  expect_faults(linear_node(random, false), linear);
  append(faults, {attribute("activation", "relu", "activation is relu, not silu or gelu_tanh"),
                  attribute("activation", "", "activation is , not"), no_attribute("activation"),
                  attribute("out_features", 33, "values has the shape [4, 3, 256]"),
                  not_constant("values")});
  expect_faults(linear_node(random, true), faults);
});

const Adds embed_faults("Embed rejects what does not fit", [] {
  Random random(51);
  Node node = Node::of<Embed>();
  node.set("hidden_size", 70);
  node.set("vocab_size", 40);
  node.set("scale", 1.0f);
  fix_weights(node, random_weights(random, 40, 70, 4, true));
  node.feed("mask_embeddings", floats_of({2, 70}));
  node.feed("token_ids", ints({1, 3}, {0, 41, 39}));
  std::vector<Fault> faults = {
      cell("token_ids", 1, 42, "token id 42 is not one of 40 tokens and 2 masks"),
      cell("token_ids", 2, -1, "token id -1 is not"),
      cell("token_ids", 0, INT64_MAX, "token id 9223372036854775807 is not"),
      cell("token_ids", 0, INT64_MIN, "token id -9223372036854775808 is not"),
      fed("token_ids", ints_of({3}), "token_ids has the shape [3], not [1, ?]"),
      fed("token_ids", ints_of({2, 3}), "token_ids has the shape [2, 3]"),
      fed("mask_embeddings", floats_of({0, 70}), "token id 41 is not one of 40 tokens and 0 masks"),
      fed("mask_embeddings", floats_of({2, 69}), "mask_embeddings has the shape [2, 69]"),
      fed("mask_embeddings", floats_of({70}), "mask_embeddings has the shape [70]"),
      missing("token_ids"),
      missing("mask_embeddings"),
      unused(0),
  };
  append(faults, weight_faults());
  append(faults, size_faults("hidden_size"));
  append(faults, size_faults("vocab_size"));
  append(faults, real_faults("scale"));
  expect_faults(node, faults);
});

const Adds add_norm_faults("AddNorm rejects what does not fit", [] {
  Node node = Node::of<AddNorm>();
  node.set("epsilon", 1e-5f);
  node.set("delta_scale", 1.0f);
  for (const char* name : {"residual", "delta"}) node.feed(name, floats_of({3, 20}));
  for (const char* name : {"weight", "delta_weight"}) node.fix(name, floats_of({20}));
  node.feed("rows", ints({2}, {2, 0}));
  std::vector<Fault> faults = {
      fed("residual", floats_of({3, 21}), "residual has the shape [3, 21], not [?, 20]"),
      fed("residual", floats_of({60}), "residual has the shape [60]"),
      fed("delta", floats_of({2, 20}), "delta has the shape [2, 20], not [3, 20]"),
      fed("delta", floats_of({0, 20}), "delta has the shape [0, 20], not [3, 20]"),
      fed("delta", floats_of({3, 19}), "delta has the shape [3, 19]"),
      fed("weight", floats_of({0}), "weight is empty"),
      fed("weight", floats_of({1, 20}), "weight has the shape [1, 20], not [?]"),
      fed("weight", floats_of({19}), "delta_weight has the shape [20], not [19]"),
      fed("delta_weight", floats_of({0}), "delta_weight has the shape [0], not [20]"),
      cell("rows", 0, 3, "row 3 is not one of 3"),
      cell("rows", 1, -1, "row -1 is not one of 3"),
      cell("rows", 1, INT64_MIN, "is not one of 3"),
      fed("rows", ints_of({1, 2}), "rows has the shape [1, 2], not [?]"),
      missing("residual"),
      missing("weight"),
      not_constant("weight"),
      not_constant("delta_weight"),
      attribute("delta_scale", kNaN, "delta_scale is not a number"),
      unused(0),
  };
  append(faults, real_faults("epsilon"));
  expect_faults(node, faults);
});

const Adds head_faults("Head rejects what does not fit", [] {
  Random random(52);
  Node node = Node::of<Head>();
  node.set("in_features", 70);
  node.set("out_features", 40);
  node.set("num_ranks", 3);
  node.set("softcap", 0.0f);
  fix_weights(node, random_weights(random, 40, 70, 4, true));
  node.feed("quantized", quantized(random.reals(140), 70));
  node.feed("wants_logits", bools({1}, {1}));
  std::vector<Fault> faults = {
      attribute("num_ranks", 41, "num_ranks is more than out_features"),
      attribute("num_ranks", 0, "num_ranks is 0"),
      attribute("num_ranks", INT64_MAX, "num_ranks is 9223372036854775807"),
      fed("quantized", bytes_of({2, 88}), "the quantized rows has the shape [2, 88], not [?, 132]"),
      fed("wants_logits", bools({0}, {}), "wants_logits has the shape [0], not [1]"),
      fed("wants_logits", bools({}, {1}), "wants_logits has the shape [], not [1]"),
      missing("quantized"),
      missing("wants_logits"),
      unused(0),
      unused(1),
  };
  append(faults, weight_faults());
  for (const char* name : {"in_features", "out_features"}) append(faults, size_faults(name));
  append(faults, real_faults("softcap"));
  expect_faults(node, faults);
});

// Two texts of 20 and 5 slots on three pages each, with two rows each; a prefix of 10.
Step faulty_step(Random& random) {
  Shape shape;
  shape.has_norms = true;
  Step step = random_step(random, shape, {{20, 5}, {2, 2}, 10, 0, true});
  for (Text& text : step.texts) text.pages.resize(3, text.pages[0]);
  return step;
}

std::vector<Fault> attention_attribute_faults() {
  std::vector<Fault> faults = {
      attribute("kv_num_heads", 3, "heads do not share kv heads evenly"),
      attribute("head_dim", 24, "a vector has the shape [32], not [24]"),
      attribute("head_dim", 2048, "a vector has the shape [32], not [2048]"),
      {[](Node& node) {
         node["q_norm"] = node["k_norm"] = floats_of({24});
         node.set("head_dim", 24);
       },
       "head_dim is 24, not a multiple of 16 up to 1024"},
      {[](Node& node) {
         node["q_norm"] = node["k_norm"] = floats_of({1040});
         node.set("head_dim", 1040);
       },
       "head_dim is 1040, not a multiple"},
      attribute("num_heads", 3, "qkv has the shape [4, 128], not [?, 160]"),
      attribute("window", -1, "window is negative"),
      attribute("window", INT64_MIN, "window is negative"),
      no_attribute("window"),
      not_constant("cos"),
      not_constant("sin"),
      not_constant("q_norm"),
      not_constant("k_norm"),
      {[](Node& node) { node["cos"] = {}; }, "cos and sin belong together"},
      {[](Node& node) { node["sin"] = {}; }, "cos and sin belong together"},
      fed("sin", floats_of({512, 7}), "sin has the shape [512, 7], not [512, 8]"),
      fed("cos", floats_of({512}), "cos has the shape [512], not [?, ?]"),
      {[](Node& node) { node["cos"] = node["sin"] = floats_of({4, 17}); },
       "wider than half a head"},
      {[](Node& node) { node["cos"] = node["sin"] = floats_of({0, INT64_MAX / 2 + 2}); },
       "wider than half a head"},
      {[](Node& node) { node["cos"] = node["sin"] = floats_of({0, 8}); },
       "position 20 is beyond the 0 of the graph"},
      fed("q_norm", floats_of({31}), "a vector has the shape [31], not [32]"),
      fed("k_norm", floats_of({64}), "a vector has the shape [64], not [32]"),
  };
  for (const char* name : {"num_heads", "head_dim"})
    for (const Fault& fault : size_faults(name)) faults.push_back(fault);
  for (const char* name : {"scale", "softcap", "epsilon"}) append(faults, real_faults(name));
  faults.push_back(attribute("kv_num_heads", 0, "kv_num_heads is 0"));
  faults.push_back(attribute("kv_num_heads", INT64_MAX, "kv_num_heads is"));
  faults.push_back(attribute("kv_num_heads", INT32_MAX, "evenly"));
  return faults;
}

std::vector<Fault> attention_input_faults() {
  std::vector<Fault> faults = {
      fed("qkv", floats_of({4, 127}), "qkv has the shape [4, 127], not [?, 128]"),
      fed("qkv", floats_of({4, 1, 128}), "qkv has the shape [4, 1, 128]"),
      fed("qkv", floats_of({3, 128}), "positions has the shape [1, 4], not [1, 3]"),
      fed("positions", ints_of({4}), "positions has the shape [4], not [1, 4]"),
      fed("row_slots", ints_of({3}), "row_slots has the shape [3], not [4]"),
      fed("row_texts", ints_of({5}), "row_texts has the shape [5], not [4]"),
      fed("sees", bools({4, 3}, std::vector<uint8_t>(12)), "sees has the shape [4, 3], not [4, 4]"),
      fed("sees", bools({16}, std::vector<uint8_t>(16)), "sees has the shape [16]"),
      fed("sees_prefix", bools({1, 4}, {0, 0, 0, 0}), "sees_prefix has the shape [1, 4]"),
      fed("text_lengths", ints_of({1, 2}), "text_lengths has the shape [1, 2], not [?]"),
      fed("text_lengths", ints_of({3}), "text_pages has the shape [2, 3], not [3, ?]"),
      fed("text_pages", ints_of({6}), "text_pages has the shape [6], not [2, ?]"),
      fed("text_pages", ints_of({2, 0}), "row_slots has 20, not 0 to -1"),
      fed("prefix_pages", ints_of({1, 1}), "prefix_pages has the shape [1, 1], not [?]"),
      fed("prefix_length", ints_of({0}), "prefix_length has the shape [0], not [1]"),
      fed("past", floats_of({40, 2, 2, 512}),
          "past has the shape [40, 2, 2, 512], not [?, 1, 2, 512]"),
      fed("past", floats_of({40, 1, 2, 256}), "past has the shape [40, 1, 2, 256]"),
      fed("past", floats_of({40, 1, 1, 512}), "past has the shape [40, 1, 1, 512]"),
      fed("past", floats_of({40, 1024}), "past has the shape [40, 1024]"),
      fed("past", ints_of({40, 1, 2, 512}), "past is neither float16 nor float32"),
      fed("past", bytes_of({40, 1, 2, 512}), "past is neither float16 nor float32"),
      fed("past", floats_of({0, 1, 2, 512}), "text_pages has "),
      fed("past", floats_of({3, 1, 2, 512}), ", not 0 to 2"),
      {[](Node& node) {
         node["text_lengths"] = ints_of({0});
         node["text_pages"] = ints_of({0, INT64_MAX});
       },
       "row_texts has 0, not 0 to -1"},
      unused(0),
      unused(1),
  };
  for (const char* name : {"qkv", "positions", "row_slots", "row_texts", "sees", "sees_prefix",
                           "text_lengths", "text_pages", "prefix_pages", "prefix_length", "past"})
    faults.push_back(missing(name));
  return faults;
}

std::vector<Fault> attention_number_faults() {
  std::vector<Fault> faults = {
      cell("positions", 1, 512, "position 512 is beyond the 512 of the graph"),
      cell("row_slots", 1, 48, "row_slots has 48, not 0 to 47"),
      cell("row_slots", 0, 19, "row 0 would overwrite its text"),
      cell("row_texts", 3, 2, "row_texts has 2, not 0 to 1"),
      cell("text_lengths", 0, 21, "row 0 would overwrite its text"),
      cell("text_lengths", 0, 49, "text_lengths has 49, not 0 to 48"),
      cell("text_pages", 5, 40, "text_pages has 40, not 0 to 39"),
      cell("prefix_pages", 0, 40, "prefix_pages has 40, not 0 to 39"),
      cell("prefix_length", 0, 17, "prefix_length has 17, not 0 to 16"),
      // row 1 of the first text sees itself and row 0
      cell("row_slots", 0, 30, "row 1 sees row 1 of another text, or out of order"),
      cell("row_slots", 0, 21, "row 1 sees row 1 of another text, or out of order"),
      {[](Node& node) { node["sees"].bytes[3] = 1; }, "row 0 sees row 3 of another text"},
      {[](Node& node) {
         node["sees"].bytes[1] = 2;
         node["row_slots"].set(0, int64_t{40});
       },
       "row 0 sees row 1 of another text, or out of order"},
      {[](Node& node) {
         node["sees"].bytes[10] = 0;
         node["text_lengths"].set(1, int64_t{0});
         node["sees_prefix"].bytes[2] = 0;
       },
       "row 2 sees nothing"},
      {[](Node& node) {
         node["cos"] = node["sin"] = {};
         node["positions"].set(0, (int64_t{1} << 30) + 1);
       },
       "positions has 1073741825, not 0 to 1073741824"},
  };
  for (const char* name : {"positions", "row_slots", "row_texts", "text_lengths", "text_pages",
                           "prefix_pages", "prefix_length"})
    for (const int64_t number : {int64_t{-1}, INT64_MIN, INT64_MAX})
      faults.push_back(cell(name, 0, number, name));
  return faults;
}

const Adds attention_faults("Attention rejects what does not fit, and leaves the cache alone", [] {
  Random random(53);
  const Node node = faulty_step(random).node();
  expect_faults(node, attention_attribute_faults());
  expect_faults(node, attention_input_faults());
  expect_faults(node, attention_number_faults());
});

const Adds bytes_that_are_true("Any byte but 0 is true", [] {
  Random random(54);
  Node node = faulty_step(random).node(), other = node;
  for (const char* name : {"sees", "sees_prefix"})
    for (uint8_t& byte : other[name].bytes) byte = static_cast<uint8_t>(byte * 200);
  expect_same_values(run(other), run(node), "true is 200");
});

const Adds two_sessions("Two threads may run one kernel", [] {
  Random random(55);
  const Step step = random_step(random, {}, {{70}, {6}, 5});
  Node layer = linear_node(random, true), node = step.node();
  const Node first_layer = layer, first_node = node;
  const HostKernel linear(layer), attention(node);
  const Value wanted_layer = run(layer)[0], wanted = run(node)[0];
  std::vector<Value> found(4);
  const auto work = [&](size_t start) {
    Node my_layer = first_layer, my_node = first_node;
    for (int round = 0; round < 3; ++round) {
      found[start] = attention.run(my_node, {2, 1})[0];
      found[start + 1] = linear.run(my_layer, {2, 1})[0];
    }
  };
  std::thread other(work, 2);
  work(0);
  other.join();
  expect_same_values(found, {wanted, wanted_layer, wanted, wanted_layer}, "two threads");
});

const Adds registration("The library registers six operators of the domain bita, once", [] {
  expect(domains().size() == 1 && domains().count("bita") == 1, "one domain");
  std::vector<std::string> names;
  for (const OrtCustomOp* op : domains().at("bita")) {
    names.emplace_back(op->GetName(op));
    expect(op->GetStartVersion(op) == 1 && op->GetEndVersion(op) == 1, names.back() + "'s version");
    expect(!op->GetExecutionProviderType(op), names.back() + " is for the processor");
  }
  const std::vector<std::string> wanted = {"Embed",       "AddNorm",   "Linear",
                                           "GatedLinear", "Attention", "Head"};
  expect(names == wanted, "the operators' names");
  expect(!RegisterCustomOps(nullptr, api_base(true)), "a library that is too new says nothing");
});

const Adds about_roads("The library names its roads and takes those that are there", [] {
  expect(bita_operators_version() == 1, "the version");
  const std::string names = bita_operators_roads();
  for (const Kernels* road : roads()) {
    expect(names.find(road->name) != std::string::npos, "a road is named");
    expect(bita_operators_use_road(road->name) == 0, "a road is taken");
    expect(bita_operators_road() == std::string(road->name), "the road in use");
  }
  expect(bita_operators_use_road("none") == -1 && bita_operators_use_road(nullptr) == -1 &&
             bita_operators_use_road("") == -1,
         "roads that are not there");
  expect(bita_operators_use_road(roads().front()->name) == 0, "the best road");
});

}  // namespace
}  // namespace bita::tests
