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

// Changes to a node that works, and what its status says then.
class Faults {
 public:
  explicit Faults(Node good) : good_(std::move(good)) {
    Node works = good_;
    expect(fault_of(works).empty(), works.op + " works before it is broken");
  }
  ~Faults() { expect(num_unreleased() == 0, good_.op + " releases what it was given"); }
  Faults(const Faults&) = delete;
  Faults& operator=(const Faults&) = delete;

  // Nothing that the node was fed is written to.
  void broken(Node bad, const std::string& wanted) const {
    const std::vector<Input> before = bad.inputs;
    const std::string text = fault_of(bad, {3, 1});
    expect(text.find("bita." + bad.op + ": ") == 0 && text.find(wanted) != std::string::npos,
           bad.op + " says '" + text + "', not '" + wanted + "'");
    for (size_t i = 0; i < before.size(); ++i)
      expect_same(bad.inputs[i].value.bytes, before[i].value.bytes, bad.op + "'s memory");
  }
  template <class T>
  void attribute(const char* name, T number, const char* text) const {
    Node bad = good_;
    bad.set(name, number);
    broken(std::move(bad), text);
  }
  void no_attribute(const char* name) const {
    Node bad = good_;
    bad.attributes.erase(name);
    broken(std::move(bad), name);
  }
  void fed(const char* name, const Value& value, const char* text) const {
    Node bad = good_;
    bad[name] = value;  // constant, if it is
    broken(std::move(bad), text);
  }
  void fed_both(const char* name, const char* other, const Value& value, const char* text) const {
    Node bad = good_;
    bad[name] = bad[other] = value;
    broken(std::move(bad), text);
  }
  void missing(const char* name) const { fed(name, {}, "there is no "); }
  template <class T>
  void cell(const char* name, int64_t index, T number, const char* text) const {
    Node bad = good_;
    bad[name].set(index, number);
    broken(std::move(bad), text);
  }
  void not_constant(const char* name) const {
    Node bad = good_;
    bad.at(name).is_constant = false;
    broken(std::move(bad), "is not an initializer");
  }
  void unused(size_t output) const {
    Node bad = good_;
    bad.is_used[output] = false;
    broken(std::move(bad), " is not used");
  }

  void size(const char* name) const {
    attribute(name, 0, " is 0");
    attribute(name, -1, " is -1");
    attribute(name, int64_t{1} << 31, " is 2147483648");
    attribute(name, INT64_MAX, " is 9223372036854775807");
    attribute(name, INT64_MIN, " is -9223372036854775808");
    attribute(name, 1.0f, name);
    no_attribute(name);
  }
  void real(const char* name) const {
    attribute(name, kNaN, "is not a number");
    attribute(name, kInfinity, "is not a number");
    attribute(name, 1, name);
    no_attribute(name);
  }

  const Node& good() const { return good_; }

 private:
  Node good_;
};

// Faults of weights [40 outputs, 70 inputs] of 4 bits: 3 tiles of 3 blocks.
void weight_faults(const Faults& faults) {
  faults.attribute("bits", 5, "bits is 5");
  faults.attribute("bits", -4, "bits is -4");
  faults.attribute("bits", 8, "values has the shape [3, 3, 256], not [3, 3, 512]");
  faults.no_attribute("bits");
  for (const char* name : {"values", "scales"}) faults.missing(name);
  for (const char* name : {"values", "scales", "minima"}) faults.not_constant(name);
  faults.fed("values", bytes_of({3, 256, 3}), "values has the shape [3, 256, 3], not [3, 3, 256]");
  faults.fed("values", bytes_of({3, 3 * 256}), "values has the shape [3, 768]");
  faults.fed("values", bytes_of({3, 3, 1, 1, 256}), "a tensor has 5 dimensions");
  faults.fed("values", zeros(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8, {3, 3, 256}), "of a wrong type");
  faults.fed("values", zeros(ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE, {3, 3, 256}), "of a wrong type");
  faults.fed("values", bytes_of({0, 3, 256}), "values has the shape [0, 3, 256]");
  faults.fed("scales", halves_of({3, 3, 8}), "scales has the shape [3, 3, 8], not [3, 3, 16]");
  faults.fed("scales", halves_of({2, 3, 16}), "scales has the shape [2, 3, 16]");
  faults.fed("minima", halves_of({3, 2, 16}), "minima has the shape [3, 2, 16]");
  faults.fed("minima", halves_of({0}), "minima has the shape [0]");
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

// Those of both linear operators.
void linear_faults(const Faults& faults) {
  faults.missing("quantized");
  faults.fed("quantized", bytes_of({3, 131}),
             "the quantized rows has the shape [3, 131], not [?, 132]");
  faults.fed("quantized", bytes_of({396}), "the quantized rows has the shape [396]");
  faults.fed("bias", floats_of({39}), "a vector has the shape [39], not [40]");
  faults.fed("bias", floats_of({1, 40}), "a vector has the shape [1, 40]");
  faults.fed("bias", floats_of({0}), "a vector has the shape [0]");
  faults.not_constant("bias");
  for (const char* name : {"first_mask_row", "down", "up"}) faults.fed(name, {}, "belong together");
  faults.cell("first_mask_row", 0, int64_t{-1}, "first_mask_row is negative");
  faults.cell("first_mask_row", 0, INT64_MIN, "first_mask_row is negative");
  faults.fed("first_mask_row", ints_of({}), "first_mask_row has the shape []");
  faults.fed("first_mask_row", ints_of({2}), "first_mask_row has the shape [2]");
  faults.fed("first_mask_row", ints_of({0}), "first_mask_row has the shape [0]");
  faults.fed("down", floats_of({69, 2}), "down has the shape [69, 2], not [70, ?]");
  faults.fed("down", floats_of({140}), "down has the shape [140]");
  faults.fed("down", floats_of({70, 3}), "up has the shape [2, 40], not [3, 40]");
  faults.fed("down", floats_of({70, 0}), "up has the shape [2, 40], not [0, 40]");
  faults.fed("up", floats_of({2, 39}), "up has the shape [2, 39]");
  faults.unused(0);
  for (const char* name : {"in_features", "out_features"}) {
    faults.size(name);
    faults.attribute(name, INT32_MAX, " has the shape ");
  }
}

const Adds linear("Linear rejects what does not fit", [] {
  Random random(50);
  const Faults faults(linear_node(random, false));
  linear_faults(faults);
  weight_faults(faults);
});

const Adds gated_linear("GatedLinear rejects what does not fit", [] {
  Random random(56);
  const Faults faults(linear_node(random, true));
  linear_faults(faults);
  faults.not_constant("values");
  faults.attribute("out_features", 33, "values has the shape [4, 3, 256]");
  faults.attribute("activation", "relu", "activation is relu, not silu or gelu_tanh");
  faults.attribute("activation", "", "activation is , not");
  faults.no_attribute("activation");
});

const Adds embed("Embed rejects what does not fit", [] {
  Random random(51);
  Node node = Node::of<Embed>();
  node.set("hidden_size", 70);
  node.set("vocab_size", 40);
  node.set("scale", 1.0f);
  fix_weights(node, random_weights(random, 40, 70, 4, true));
  node.feed("mask_embeddings", floats_of({2, 70}));
  node.feed("token_ids", ints({1, 3}, {0, 41, 39}));
  const Faults faults(node);
  faults.cell("token_ids", 1, int64_t{42}, "token id 42 is not one of 40 tokens and 2 masks");
  faults.cell("token_ids", 2, int64_t{-1}, "token id -1 is not");
  faults.cell("token_ids", 0, INT64_MAX, "token id 9223372036854775807 is not");
  faults.cell("token_ids", 0, INT64_MIN, "token id -9223372036854775808 is not");
  faults.fed("token_ids", ints_of({3}), "token_ids has the shape [3], not [1, ?]");
  faults.fed("token_ids", ints_of({2, 3}), "token_ids has the shape [2, 3]");
  faults.fed("mask_embeddings", floats_of({0, 70}), "token id 41 is not one of 40 tokens and 0");
  faults.fed("mask_embeddings", floats_of({2, 69}), "mask_embeddings has the shape [2, 69]");
  faults.fed("mask_embeddings", floats_of({70}), "mask_embeddings has the shape [70]");
  for (const char* name : {"token_ids", "mask_embeddings"}) faults.missing(name);
  faults.unused(0);
  weight_faults(faults);
  for (const char* name : {"hidden_size", "vocab_size"}) {
    faults.size(name);
    faults.attribute(name, INT32_MAX, " has the shape ");
  }
  faults.real("scale");
});

const Adds add_norm("AddNorm rejects what does not fit", [] {
  Node node = Node::of<AddNorm>();
  node.set("epsilon", 1e-5f);
  node.set("delta_scale", 1.0f);
  for (const char* name : {"residual", "delta"}) node.feed(name, floats_of({3, 20}));
  for (const char* name : {"weight", "delta_weight"}) node.fix(name, floats_of({20}));
  node.feed("rows", ints({2}, {2, 0}));
  const Faults faults(node);
  faults.fed("residual", floats_of({3, 21}), "residual has the shape [3, 21], not [?, 20]");
  faults.fed("residual", floats_of({60}), "residual has the shape [60]");
  faults.fed("delta", floats_of({2, 20}), "delta has the shape [2, 20], not [3, 20]");
  faults.fed("delta", floats_of({0, 20}), "delta has the shape [0, 20], not [3, 20]");
  faults.fed("delta", floats_of({3, 19}), "delta has the shape [3, 19]");
  faults.fed("weight", floats_of({0}), "weight is empty");
  faults.fed("weight", floats_of({1, 20}), "weight has the shape [1, 20], not [?]");
  faults.fed("weight", floats_of({19}), "delta_weight has the shape [20], not [19]");
  faults.fed("delta_weight", floats_of({0}), "delta_weight has the shape [0], not [20]");
  faults.cell("rows", 0, int64_t{3}, "row 3 is not one of 3");
  faults.cell("rows", 1, int64_t{-1}, "row -1 is not one of 3");
  faults.cell("rows", 1, INT64_MIN, "is not one of 3");
  faults.fed("rows", ints_of({1, 2}), "rows has the shape [1, 2], not [?]");
  for (const char* name : {"residual", "weight"}) faults.missing(name);
  for (const char* name : {"weight", "delta_weight"}) faults.not_constant(name);
  faults.attribute("delta_scale", kNaN, "delta_scale is not a number");
  faults.real("epsilon");
  faults.unused(0);
});

const Adds head("Head rejects what does not fit", [] {
  Random random(52);
  Node node = Node::of<Head>();
  node.set("in_features", 70);
  node.set("out_features", 40);
  node.set("num_ranks", 3);
  node.set("softcap", 0.0f);
  fix_weights(node, random_weights(random, 40, 70, 4, true));
  node.feed("quantized", quantized(random.reals(140), 70));
  node.feed("wants_logits", bools({1}, {1}));
  const Faults faults(node);
  faults.attribute("num_ranks", 41, "num_ranks is more than out_features");
  faults.size("num_ranks");
  faults.fed("quantized", bytes_of({2, 88}),
             "the quantized rows has the shape [2, 88], not [?, 132]");
  faults.fed("wants_logits", bools({0}, {}), "wants_logits has the shape [0], not [1]");
  faults.fed("wants_logits", bools({}, {1}), "wants_logits has the shape [], not [1]");
  for (const char* name : {"quantized", "wants_logits"}) faults.missing(name);
  for (const size_t output : {0, 1}) faults.unused(output);
  weight_faults(faults);
  for (const char* name : {"in_features", "out_features"}) {
    faults.size(name);
    faults.attribute(name, INT32_MAX, " has the shape ");
  }
  faults.real("softcap");
});

// Two texts of 20 and 5 slots on three pages each, with two rows each; a prefix of 10.
Node step_node(Random& random) {
  Shape shape;
  shape.has_norms = true;
  Step step = random_step(random, shape, {{20, 5}, {2, 2}, 10, 0, true});
  for (Text& text : step.texts) text.pages.resize(3, text.pages[0]);
  return step.node();
}

const Adds attention_attributes(
    "Attention rejects attributes and initializers that do not fit", [] {
      Random random(53);
      const Faults faults(step_node(random));
      for (const char* name : {"num_heads", "kv_num_heads", "head_dim"}) faults.size(name);
      for (const char* name : {"scale", "softcap", "epsilon"}) faults.real(name);
      faults.attribute("kv_num_heads", 3, "heads do not share kv heads evenly");
      faults.attribute("kv_num_heads", INT32_MAX, "heads do not share kv heads evenly");
      faults.attribute("num_heads", 3, "qkv has the shape [4, 128], not [?, 160]");
      faults.attribute("num_heads", INT32_MAX, "qkv has the shape [4, 128], not [?, 68719476768]");
      faults.attribute("head_dim", 16, "a vector has the shape [32], not [16]");
      for (const int64_t size : {24, 1040, INT32_MAX}) {
        Node bad = faults.good();
        bad["q_norm"] = bad["k_norm"] = {};
        bad.set("head_dim", size);
        faults.broken(bad,
                      "head_dim is " + std::to_string(size) + ", not a multiple of 16 up to 1024");
      }
      faults.attribute("window", -1, "window is negative");
      faults.attribute("window", INT64_MIN, "window is negative");
      faults.no_attribute("window");
      for (const char* name : {"cos", "sin", "q_norm", "k_norm"}) faults.not_constant(name);
      for (const char* name : {"cos", "sin"}) faults.fed(name, {}, "cos and sin belong together");
      faults.fed("sin", floats_of({512, 7}), "sin has the shape [512, 7], not [512, 8]");
      faults.fed("cos", floats_of({512}), "cos has the shape [512], not [?, ?]");
      faults.fed_both("cos", "sin", floats_of({4, 17}), "wider than half a head");
      faults.fed_both("cos", "sin", floats_of({0, INT64_MAX / 2 + 2}), "wider than half a head");
      faults.fed_both("cos", "sin", floats_of({0, 8}), "position 20 is beyond the 0 of the graph");
      faults.fed("q_norm", floats_of({31}), "a vector has the shape [31], not [32]");
      faults.fed("k_norm", floats_of({64}), "a vector has the shape [64], not [32]");
      for (const size_t output : {0, 1}) faults.unused(output);
    });

const Adds attention_inputs("Attention rejects inputs that do not fit", [] {
  Random random(57);
  const Faults faults(step_node(random));
  for (const char* name : {"qkv", "positions", "row_slots", "row_texts", "sees", "sees_prefix",
                           "text_lengths", "text_pages", "prefix_pages", "prefix_length", "past"})
    faults.missing(name);
  faults.fed("qkv", floats_of({4, 127}), "qkv has the shape [4, 127], not [?, 128]");
  faults.fed("qkv", floats_of({4, 1, 128}), "qkv has the shape [4, 1, 128]");
  faults.fed("qkv", floats_of({3, 128}), "positions has the shape [1, 4], not [1, 3]");
  faults.fed("positions", ints_of({4}), "positions has the shape [4], not [1, 4]");
  faults.fed("row_slots", ints_of({3}), "row_slots has the shape [3], not [4]");
  faults.fed("row_texts", ints_of({5}), "row_texts has the shape [5], not [4]");
  faults.fed("sees", bools({4, 3}, std::vector<uint8_t>(12)), "sees has the shape [4, 3], not");
  faults.fed("sees", bools({16}, std::vector<uint8_t>(16)), "sees has the shape [16]");
  faults.fed("sees_prefix", bools({1, 4}, {0, 0, 0, 0}), "sees_prefix has the shape [1, 4]");
  faults.fed("text_lengths", ints_of({1, 2}), "text_lengths has the shape [1, 2], not [?]");
  faults.fed("text_lengths", ints_of({3}), "text_pages has the shape [2, 3], not [3, ?]");
  faults.fed("text_pages", ints_of({6}), "text_pages has the shape [6], not [2, ?]");
  faults.fed("text_pages", ints_of({2, 0}), "row_slots has 20, not 0 to -1");
  faults.fed("prefix_pages", ints_of({1, 1}), "prefix_pages has the shape [1, 1], not [?]");
  faults.fed("prefix_length", ints_of({0}), "prefix_length has the shape [0], not [1]");
  faults.fed("past", floats_of({40, 2, 2, 512}),
             "past has the shape [40, 2, 2, 512], not [?, 1, 2");
  faults.fed("past", floats_of({40, 1, 2, 256}), "past has the shape [40, 1, 2, 256]");
  faults.fed("past", floats_of({40, 1, 1, 512}), "past has the shape [40, 1, 1, 512]");
  faults.fed("past", floats_of({40, 1024}), "past has the shape [40, 1024]");
  faults.fed("past", ints_of({40, 1, 2, 512}), "past is neither float16 nor float32");
  faults.fed("past", bytes_of({40, 1, 2, 512}), "past is neither float16 nor float32");
  faults.fed("past", floats_of({0, 1, 2, 512}), "text_pages has ");
  faults.fed("past", floats_of({3, 1, 2, 512}), ", not 0 to 2");
  Node bad = faults.good();
  bad["text_lengths"] = ints_of({0});
  bad["text_pages"] = ints_of({0, INT64_MAX});
  faults.broken(bad, "row_texts has 0, not 0 to -1");
});

const Adds attention_numbers("Attention rejects places that are not there", [] {
  Random random(58);
  const Faults faults(step_node(random));
  for (const char* name : {"positions", "row_slots", "row_texts", "text_lengths", "text_pages",
                           "prefix_pages", "prefix_length"})
    for (const int64_t number : {int64_t{-1}, INT64_MIN, INT64_MAX})
      faults.cell(name, 0, number, name);
  faults.cell("positions", 1, int64_t{512}, "position 512 is beyond the 512 of the graph");
  faults.cell("row_slots", 1, int64_t{48}, "row_slots has 48, not 0 to 47");
  faults.cell("row_slots", 0, int64_t{19}, "row 0 would overwrite its text");
  faults.cell("row_texts", 3, int64_t{2}, "row_texts has 2, not 0 to 1");
  faults.cell("text_lengths", 0, int64_t{21}, "row 0 would overwrite its text");
  faults.cell("text_lengths", 0, int64_t{49}, "text_lengths has 49, not 0 to 48");
  faults.cell("text_pages", 5, int64_t{40}, "text_pages has 40, not 0 to 39");
  faults.cell("prefix_pages", 0, int64_t{40}, "prefix_pages has 40, not 0 to 39");
  faults.cell("prefix_length", 0, int64_t{17}, "prefix_length has 17, not 0 to 16");
  // row 1, in slot 21, sees itself and row 0
  for (const int64_t slot : {21, 30})
    faults.cell("row_slots", 0, slot, "row 1 sees row 1 of another text, or out of order");
  faults.cell("sees", 3, uint8_t{1}, "row 0 sees row 3 of another text");
  Node bad = faults.good();
  bad["sees"].set(10, uint8_t{0});
  bad["sees_prefix"].set(2, uint8_t{0});
  bad["text_lengths"].set(1, int64_t{0});
  faults.broken(bad, "row 2 sees nothing");
  bad["sees_prefix"].set(2, uint8_t{1});
  bad["prefix_length"].set(0, int64_t{0});
  faults.broken(bad, "row 2 sees nothing");
  bad = faults.good();
  bad["cos"] = bad["sin"] = {};
  bad["positions"].set(0, (int64_t{1} << 30) + 1);
  faults.broken(bad, "positions has 1073741825, not 0 to 1073741824");
});

const Adds bytes_that_are_true("Any byte but 0 is true", [] {
  Random random(54);
  Node node = step_node(random), other = node;
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
