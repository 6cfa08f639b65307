// Sublayers with random weights, as a single node and as the equivalent chain of operators.
#pragma once

#include <optional>

#include "step.h"
#include "thin.h"

namespace bita::tests {

// The properties of a linear layer, besides its weights.
struct LinearForm {
  int bits = 4;
  bool has_minima = false, has_bias = false;
};

struct SublayerForm {
  int64_t hidden_size = 50;
  LinearForm first, second;  // qkv and o, or gate_up and down
  bool has_post_norm = false;
  float residual_scale = 1;
  int64_t rank = 0;  // of LoRA; 0 without
  int64_t first_mask_row = 0;
};

// A linear layer, or a gated one.
struct LinearLayer {
  BlockWeights weights;
  std::vector<float> bias;
  std::optional<Thin> lora;

  // Give its inputs to a node. prefix: of their names.
  void give(Node& node, const std::string& prefix = "") const;
};

struct Sublayer {
  SublayerForm form;
  int64_t inner_size;  // number of the second layer's inputs
  std::vector<float> norm, post_norm;
  LinearLayer first, second;

  // The residual stream after the second layer's products were added, computed by single operators.
  Value added(const Value& hidden, const Value& inner, const Threads& threads) const;
  // The products of the first layer, or their gates, for normalized rows, computed by single
  // operators.
  Value begun(Node layer, const Value& hidden, const Threads& threads) const;
  // Give a node the inputs that both kinds of sublayer have.
  void give(Node& node, const std::string& first_prefix, const std::string& second_prefix,
            const Value& hidden) const;
};

Value random_hidden(Random& random, int64_t num_rows, const SublayerForm& form);

// An attention sublayer of a shape; its queries, keys and values differ from those of a step.
Sublayer attention_sublayer(Random& random, const SublayerForm& form, const Shape& shape);
Node attention_node(const Sublayer& sublayer, const Step& step, const Value& hidden);
// The outputs of that node, computed by single operators.
std::vector<Value> attention_chain(const Sublayer& sublayer, const Step& step, const Value& hidden,
                                   const Threads& threads);

Sublayer mlp_sublayer(Random& random, const SublayerForm& form, int64_t intermediate_size);
Node mlp_node(const Sublayer& sublayer, const char* activation, const Value& hidden);
std::vector<Value> mlp_chain(const Sublayer& sublayer, const char* activation, const Value& hidden,
                             const Threads& threads);

}  // namespace bita::tests
