#include "attention_sublayer.h"

#include "scratch.h"

namespace bita {
namespace {

constexpr size_t kFirstMaskRow = 21;
constexpr LinearPorts kQkv = {3, kFirstMaskRow, "qkv_bits"}, kO = {15, kFirstMaskRow, "o_bits"};
constexpr size_t kSights = 9;

}  // namespace

AttentionSublayer::AttentionSublayer(const NodeInfo& info)
    : residual_(info),
      attention_(info, kSights),
      qkv_(info, kQkv, residual_.size(), attention_.shape().width()),
      o_(info, kO, attention_.shape().values(), residual_.size()) {}

void AttentionSublayer::run(const NodeRun& node) const {
  thread_local Scratch<uint8_t> normed_rows, attended_rows;
  thread_local Scratch<float> products;
  const Tensor input = residual_.read(node);
  const float* hidden = input.as<float>();
  const int64_t num_rows = input.dims[0], size = residual_.size();
  const HeadShape& shape = attention_.shape();
  float* out = node.output<float>(0, {num_rows, size});
  const AttentionStep step(attention_, node, num_rows);
  uint8_t* normed = normed_rows.take(num_rows * residual_.row_bytes());
  uint8_t* attended = attended_rows.take(num_rows * row_bytes(num_blocks(shape.values())));
  float* heads = products.take(num_rows * shape.width());
  const MaskRows masks = mask_rows(node, kFirstMaskRow, num_rows);
  Lora qkv_lora = qkv_.lora(node, masks), o_lora = o_.lora(node, masks);
  const auto take_heads = [&](int64_t row, int64_t first, int64_t last, const float* values) {
    for (int64_t at = first; at < last; at += shape.head_dim)
      step.take(row, at / shape.head_dim, values + at - first);
  };
  const auto add = [&](int64_t row, int64_t first, int64_t last, float* values) {
    residual_.add(hidden + row * size, first, last, values);
  };
  run_phases(node, residual_.norm(hidden, num_rows, normed), qkv_lora.read(normed),
             qkv_.phase(normed, num_rows, shape.head_dim, heads, qkv_lora, take_heads),
             step.attend(), step.finish(attended), o_lora.read(attended),
             o_.phase(attended, num_rows, kTile, out, o_lora, add),
             residual_.add_normed(hidden, num_rows, out));
}

}  // namespace bita
