// The adapter: everything that BiTA learned for one model, in one small safetensors file.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "../decoding/guesses.h"
#include "tensor_file.h"

namespace bita {

// An array of floats, row-major.
struct FloatArray {
  std::vector<int64_t> shape;
  std::vector<float> values;
};

// Likely continuations of a few tokens (`bita/continuations.py`). marks, values: [S], where S is a
// power of two.
struct ContinuationTable {
  std::vector<uint16_t> marks;
  std::vector<uint32_t> values;
};

// The sites of LoRA, in the order of `bita.lora.LORA_TENSORS`.
constexpr std::array<const char*, 4> kLoraSites = {"qkv", "o", "gate_up", "down"};

// Arrays that steps read are clamped, so that no value, however large, can affect a text
// (`Adapter.bounded` of Python).
struct Adapter {
  FloatArray mask_embeddings;               // [M, hidden]
  FloatArray prefix_keys, prefix_values;    // [L, H, P, D]
  std::map<std::string, FloatArray> lora;   // lora_{site}_{side}; empty without LoRA
  std::map<std::string, FloatArray> pairs;  // pair_left, pair_bias, pair_right; not clamped
  std::optional<ContinuationTable> continuations;
  std::vector<float> bonuses;  // [kNumBonuses]

  int64_t num_masks() const { return mask_embeddings.shape[0]; }
  int64_t prefix_length() const { return prefix_keys.shape[2]; }
  int64_t lora_rank() const;
  int64_t pair_rank() const;
};

// Read and check a file. Throws a Fault that names the path, every fault of the file, and the fix.
Adapter read_adapter(const std::filesystem::path& path);

// Read and check a file in memory, for tests; `subject` names it in messages.
Adapter parse_adapter(std::string content, const std::string& subject);

}  // namespace bita
