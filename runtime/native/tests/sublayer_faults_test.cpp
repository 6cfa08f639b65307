// Nodes that the sublayers reject.
#include "faults.h"
#include "sublayers.h"

namespace bita::tests {
namespace {

constexpr LinearForm kFull = {4, true, true};

// The form of sublayers with 4 rows of 70 numbers and all optional inputs.
const SublayerForm& full_form() {
  static const SublayerForm form{70, kFull, kFull, true, 0.5f, 2, 1};
  return form;
}

// Faults of both sublayers.
void sublayer_faults(const Faults& faults) {
  faults.size("hidden_size");
  faults.attribute("hidden_size", INT32_MAX, "norm has the shape [70], not [2147483647]");
  for (const char* name : {"epsilon", "residual_scale"}) faults.real(name);
  for (const char* name : {"hidden", "norm"}) faults.missing(name);
  for (const char* name : {"norm", "post_norm"}) vector_faults(faults, name, 70);
  faults.reshaped("hidden", {4, 69}, "[?, 70]");
  faults.reshaped("hidden", {280}, "[?, 70]");
  faults.reshaped("hidden", {1, 4, 70}, "[?, 70]");
  mask_row_faults(faults);
  faults.unused(0, "sum");
}

void linear_faults(const Faults& faults, const std::string& prefix, int64_t outputs,
                   int64_t inputs) {
  weight_faults(faults, prefix, outputs, inputs);
  vector_faults(faults, prefix + "bias", outputs);
  lora_faults(faults, prefix, num_tiles(outputs), inputs);
}

const Adds attention("AttentionSublayer rejects nodes that do not fit", [] {
  Random random(72);
  const Step step = small_step(random);
  const Sublayer sublayer = attention_sublayer(random, full_form(), step.shape);
  const Faults faults(attention_node(sublayer, step, random_hidden(random, 4, full_form())));
  attention_faults(faults);
  sights_faults(faults, step);
  sublayer_faults(faults);
  linear_faults(faults, "qkv_", 128, 70);
  layer_faults(faults, "qkv_down");
  linear_faults(faults, "o_", 70, 64);
  faults.attribute("num_heads", 3, "qkv_values has the shape [8, 3, 256], not [10, 3, 256]");
  faults.attribute("num_heads", INT32_MAX, "qkv_values has the shape [8, 3, 256]");
  faults.fed("hidden", floats_of({3, 70}), "sights are for 4 rows, but the input has 3");
  faults.unused(1, "present");
});

const Adds mlp("MlpSublayer rejects nodes that do not fit", [] {
  Random random(73);
  const Sublayer sublayer = mlp_sublayer(random, full_form(), 50);
  const Faults faults(mlp_node(sublayer, "silu", random_hidden(random, 4, full_form())));
  sublayer_faults(faults);
  weight_faults(faults, "gate_up_", 128, 70);
  vector_faults(faults, "gate_up_bias", 100);
  lora_faults(faults, "gate_up_", 8, 70);
  layer_faults(faults, "gate_up_down");
  linear_faults(faults, "down_", 70, 50);
  faults.size("intermediate_size");
  faults.attribute("intermediate_size", 65, "gate_up_values has the shape [8, 3, 256], not [12, 3");
  faults.attribute("intermediate_size", INT32_MAX, "gate_up_values has the shape [8, 3, 256]");
  faults.attribute("intermediate_size", 51, "gate_up_bias has the shape [100], not [102]");
  faults.attribute("activation", "gelu", "activation is gelu, not silu or gelu_tanh");
  faults.no_attribute("activation");
});

}  // namespace
}  // namespace bita::tests
