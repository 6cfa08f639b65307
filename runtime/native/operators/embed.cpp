#include "embed.h"

#include "../kernels/numbers.h"

namespace bita {
namespace {

// The value of a block for one input, and one output of the tile.
int32_t value_of(const Weights& weights, const uint8_t* block, int64_t input, int64_t output) {
  if (weights.bits == 8) return static_cast<int8_t>(block[input / 4 * 64 + output * 4 + input % 4]);
  const uint8_t both = block[input / 8 * 64 + output * 4 + input % 4];
  return input % 8 < 4 ? both & 15 : both >> 4;
}

void read_row(const Weights& weights, int64_t id, float factor, float* out) {
  const int64_t tile = id / kTile, lane = id % kTile, blocks = weights.blocks();
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t index = tile * blocks + block;
    const uint8_t* values = weights.values + index * weights.block_bytes();
    const float scale = from_half(weights.scales[index * kTile + lane]);
    float minimum = weights.bits == 4 ? -8.0f * scale : 0.0f;
    if (weights.minima) minimum = from_half(weights.minima[index * kTile + lane]);
    const int64_t start = block * kBlock;
    for (int64_t i = 0; i < kBlock && start + i < weights.inputs; ++i) {
      const float product = scale * static_cast<float>(value_of(weights, values, i, lane));
      out[start + i] = (product + minimum) * factor;
    }
  }
}

}  // namespace

Embed::Embed(const NodeInfo& info)
    : hidden_size_(info.size("hidden_size")),
      vocab_size_(info.size("vocab_size")),
      scale_(info.real("scale")),
      weights_(read_weights(info, 2, info.integer("bits"), hidden_size_, vocab_size_)) {}

void Embed::run(const NodeRun& node) const {
  const Tensor ids = node.input(0), masks = node.input(1);
  check_dims("token_ids", ids, {1, -1});
  check_dims("mask_embeddings", masks, {-1, hidden_size_});
  const int64_t num_rows = ids.dims[1], num_masks = masks.dims[0];
  float* out = node.output<float>(0, {num_rows, hidden_size_});
  for (int64_t row = 0; row < num_rows; ++row) {
    const int64_t id = ids.as<int64_t>()[row];
    if (id < 0 || id >= vocab_size_ + num_masks)
      throw std::runtime_error("token id " + std::to_string(id) + " is not one of " +
                               std::to_string(vocab_size_) + " tokens and " +
                               std::to_string(num_masks) + " masks");
    float* target = out + row * hidden_size_;
    if (id < vocab_size_) {
      read_row(weights_, id, scale_, target);
      continue;
    }
    const float* mask = masks.as<float>() + (id - vocab_size_) * hidden_size_;
    for (int64_t i = 0; i < hidden_size_; ++i) target[i] = mask[i] * scale_;
  }
}

}  // namespace bita
