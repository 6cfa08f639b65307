// Nodes that the operators on single rows reject.
#include "faults.h"

#include "../operators/add_norm.h"
#include "../operators/embed.h"
#include "../operators/head.h"
#include "../operators/linear.h"

namespace bita::tests {
namespace {

Node linear_node(Random& random, bool is_gated) {
  Node node = is_gated ? Node::of<GatedLinear>() : Node::of<Linear>();
  node.set("in_features", 70);
  node.set("out_features", is_gated ? 20 : 40);
  node.set("activation", "silu");
  fix_weights(node, random_weights(random, is_gated ? 64 : 40, 70, 4, true));
  node.feed("quantized", quantized(random.reals(3 * 70), 70));
  node.fix("bias", floats({40}, random.reals(40)));
  node.feed("first_mask_row", ints({1}, {1}));
  node.set("layer", kThinLayer);
  const Thin lora = random_thin(random, 70, 40, 2, is_gated);
  node.feed("down", lora.down_value());
  node.feed("up", lora.up_value());
  return node;
}

// Faults of both linear operators.
void linear_faults(const Faults& faults, int64_t tiles) {
  faults.missing("quantized");
  faults.fed("quantized", bytes_of({3, 131}),
             "the quantized rows has the shape [3, 131], not [?, 132]");
  faults.fed("quantized", bytes_of({396}), "the quantized rows has the shape [396]");
  vector_faults(faults, "bias", 40);
  lora_faults(faults, "", tiles, 70);
  layer_faults(faults, "down");
  mask_row_faults(faults);
  for (const char* name : {"in_features", "out_features"}) {
    faults.size(name);
    faults.attribute(name, INT32_MAX, " has the shape ");
  }
}

const Adds linear("Linear rejects nodes that do not fit", [] {
  Random random(50);
  const Faults faults(linear_node(random, false));
  linear_faults(faults, 3);
  weight_faults(faults, "", 40, 70);
  faults.unused(0, "product");
});

const Adds gated_linear("GatedLinear rejects nodes that do not fit", [] {
  Random random(56);
  const Faults faults(linear_node(random, true));
  linear_faults(faults, 4);
  weight_faults(faults, "", 64, 70);
  faults.unused(0, "quantized");
  faults.attribute("out_features", 33, "values has the shape [4, 3, 256]");
  faults.attribute("activation", "relu", "activation is relu, not silu or gelu_tanh");
  faults.attribute("activation", "", "activation is , not");
  faults.no_attribute("activation");
});

const Adds embed("Embed rejects nodes that do not fit", [] {
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
  faults.unused(0, "hidden");
  weight_faults(faults, "", 40, 70);
  for (const char* name : {"hidden_size", "vocab_size"}) {
    faults.size(name);
    faults.attribute(name, INT32_MAX, " has the shape ");
  }
  faults.real("scale");
});

const Adds add_norm("AddNorm rejects nodes that do not fit", [] {
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
  faults.cell("rows", 0, int64_t{3}, "row 3 is not one of the 3 rows");
  faults.cell("rows", 1, int64_t{-1}, "row -1 is not one of the 3 rows");
  faults.cell("rows", 1, INT64_MIN, "is not one of the 3 rows");
  faults.fed("rows", ints_of({1, 2}), "rows has the shape [1, 2], not [?]");
  for (const char* name : {"residual", "weight"}) faults.missing(name);
  for (const char* name : {"weight", "delta_weight"}) faults.not_constant(name);
  faults.attribute("delta_scale", kNaN, "delta_scale is not finite");
  faults.real("epsilon");
  faults.unused(0, "quantized");
});

const Adds head("Head rejects nodes that do not fit", [] {
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
  faults.unused(0, "top_ids");
  faults.unused(1, "top_logits");
  weight_faults(faults, "", 40, 70);
  for (const char* name : {"in_features", "out_features"}) {
    faults.size(name);
    faults.attribute(name, INT32_MAX, " has the shape ");
  }
  faults.real("softcap");
});

}  // namespace
}  // namespace bita::tests
