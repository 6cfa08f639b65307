#include "sublayers.h"

#include "../operators/attention_sublayer.h"
#include "../operators/mlp_sublayer.h"

namespace bita::tests {
namespace {

constexpr float kEpsilon = 1e-5f;  // as in steps

// outputs: of bias and LoRA; the weights of gates may have more.
LinearLayer random_layer(Random& random, const LinearForm& form, int64_t rank, int64_t inputs,
                         int64_t weight_outputs, int64_t outputs, bool is_gated = false) {
  LinearLayer layer{
      random_weights(random, weight_outputs, inputs, form.bits, form.has_minima), {}, {}};
  if (form.has_bias) layer.bias = random.reals(outputs, 0.5f);
  if (rank) layer.lora = random_thin(random, inputs, outputs, rank, is_gated);
  return layer;
}

Sublayer with_norms(Random& random, const SublayerForm& form, int64_t inner_size) {
  Sublayer sublayer{form, inner_size, random.reals(form.hidden_size), {}, {}, {}};
  if (form.has_post_norm) sublayer.post_norm = random.reals(form.hidden_size);
  return sublayer;
}

Value vector(const std::vector<float>& cells) {
  return floats({static_cast<int64_t>(cells.size())}, cells);
}

// Run a node of AddNorm; its outputs are the quantized norm of the sum, and the sum.
std::vector<Value> normed(Node node, const Value& hidden, const Threads& threads) {
  node.set("epsilon", kEpsilon);
  node.feed("residual", hidden);
  return run(node, threads);
}

Node linear_node(int64_t inputs, int64_t outputs) {
  Node node = Node::of<Linear>();
  node.set("in_features", inputs);
  node.set("out_features", outputs);
  node.set("layer", kThinLayer);
  return node;
}

void give_mask_row(Node& node, const SublayerForm& form) {
  if (form.rank) node.feed("first_mask_row", ints({1}, {form.first_mask_row}));
}

}  // namespace

void LinearLayer::give(Node& node, const std::string& prefix) const {
  fix_weights(node, weights, prefix);
  if (!bias.empty()) node.fix(prefix + "bias", vector(bias));
  if (!lora) return;
  node.feed(prefix + "down", lora->down_value());
  node.feed(prefix + "up", lora->up_value());
}

Value Sublayer::begun(Node layer, const Value& hidden, const Threads& threads) const {
  Node add_norm = Node::of<AddNorm>();
  add_norm.is_used[1] = false;
  add_norm.fix("weight", vector(norm));
  first.give(layer);
  give_mask_row(layer, form);
  layer.feed("quantized", normed(add_norm, hidden, threads)[0]);
  return run(layer, threads)[0];
}

Value Sublayer::added(const Value& hidden, const Value& inner, const Threads& threads) const {
  Node layer = linear_node(inner_size, form.hidden_size);
  second.give(layer);
  give_mask_row(layer, form);
  layer.feed("quantized", inner);
  Node add_norm = Node::of<AddNorm>();
  add_norm.set("delta_scale", form.residual_scale);
  add_norm.fix("weight", vector(norm));
  add_norm.feed("delta", run(layer, threads)[0]);
  if (form.has_post_norm) add_norm.fix("delta_weight", vector(post_norm));
  return normed(add_norm, hidden, threads)[1];
}

void Sublayer::give(Node& node, const std::string& first_prefix, const std::string& second_prefix,
                    const Value& hidden) const {
  node.set("layer", kThinLayer);
  node.set("hidden_size", form.hidden_size);
  node.set("epsilon", kEpsilon);
  node.set("residual_scale", form.residual_scale);
  node.feed("hidden", hidden);
  node.fix("norm", vector(norm));
  if (form.has_post_norm) node.fix("post_norm", vector(post_norm));
  first.give(node, first_prefix);
  second.give(node, second_prefix);
  give_mask_row(node, form);
}

Value random_hidden(Random& random, int64_t num_rows, const SublayerForm& form) {
  return floats({num_rows, form.hidden_size}, random.reals(num_rows * form.hidden_size, 2.0f));
}

Sublayer attention_sublayer(Random& random, const SublayerForm& form, const Shape& shape) {
  Sublayer made = with_norms(random, form, shape.num_heads * shape.head_dim);
  made.first =
      random_layer(random, form.first, form.rank, form.hidden_size, shape.width(), shape.width());
  made.second = random_layer(random, form.second, form.rank, made.inner_size, form.hidden_size,
                             form.hidden_size);
  return made;
}

Node attention_node(const Sublayer& sublayer, const Step& step, const Value& hidden) {
  Node node = Node::of<AttentionSublayer>();
  sublayer.give(node, "qkv_", "o_", hidden);
  step.give(node);
  return node;
}

std::vector<Value> attention_chain(const Sublayer& sublayer, const Step& step, const Value& hidden,
                                   const Threads& threads) {
  const Node qkv = linear_node(sublayer.form.hidden_size, step.shape.width());
  Node attention = Node::of<Attention>();
  step.give(attention);
  attention.feed("qkv", sublayer.begun(qkv, hidden, threads));
  const std::vector<Value> attended = run(attention, threads);
  return {sublayer.added(hidden, attended[0], threads), attended[1]};
}

Sublayer mlp_sublayer(Random& random, const SublayerForm& form, int64_t intermediate_size) {
  Sublayer made = with_norms(random, form, intermediate_size);
  const int64_t groups = (intermediate_size + kGroup - 1) / kGroup;
  made.first = random_layer(random, form.first, form.rank, form.hidden_size, groups * 2 * kGroup,
                            2 * intermediate_size, true);
  made.second = random_layer(random, form.second, form.rank, intermediate_size, form.hidden_size,
                             form.hidden_size);
  return made;
}

Node mlp_node(const Sublayer& sublayer, const char* activation, const Value& hidden) {
  Node node = Node::of<MlpSublayer>();
  node.set("intermediate_size", sublayer.inner_size);
  node.set("activation", activation);
  sublayer.give(node, "gate_up_", "down_", hidden);
  return node;
}

std::vector<Value> mlp_chain(const Sublayer& sublayer, const char* activation, const Value& hidden,
                             const Threads& threads) {
  Node gated = Node::of<GatedLinear>();
  gated.set("in_features", sublayer.form.hidden_size);
  gated.set("out_features", sublayer.inner_size);
  gated.set("activation", activation);
  gated.set("layer", kThinLayer);
  return {sublayer.added(hidden, sublayer.begun(gated, hidden, threads), threads)};
}

}  // namespace bita::tests
