// The adapter: everything BiTA learned about one model, in one small safetensors file.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "../decoding/guesses.h"
#include "engine_directory.h"
#include "tensor_file.h"

namespace bita {

// An array of floats, row-major.
struct FloatArray {
  std::vector<int64_t> shape;
  std::vector<float> values;
};

// What usually follows a few tokens (`bita/continuations.py`). marks, values: [S], S a power of
// two.
struct ContinuationTable {
  std::vector<uint16_t> marks;
  std::vector<uint32_t> values;
};

// Sides and sites of LoRA, in the order of `bita.lora.LORA_TENSORS`.
constexpr std::array<const char*, 4> kLoraSites = {"qkv", "o", "gate_up", "down"};

// All arrays are cut off where steps read them, so that no text depends on them however large the
// values are (`Adapter.bounded` of Python).
struct Adapter {
  FloatArray mask_embeddings;               // [M, hidden]
  FloatArray prefix_keys, prefix_values;    // [L, H, P, D]
  std::map<std::string, FloatArray> lora;   // lora_{site}_{side}; empty for none
  std::map<std::string, FloatArray> pairs;  // pair_left, pair_bias, pair_right; not cut off
  std::optional<ContinuationTable> continuations;
  std::vector<float> bonuses;  // [kNumBonuses]

  int64_t num_masks() const { return mask_embeddings.shape[0]; }
  int64_t prefix_length() const { return prefix_keys.shape[2]; }
  int64_t lora_rank() const;
  int64_t pair_rank() const;
};

// Read and check a file. Throws a Fault that names the path, every fault of the file, and the fix.
Adapter read_adapter(const std::filesystem::path& path);

// The same for a file in memory, which tests make; `subject` names it.
Adapter parse_adapter(std::string content, const std::string& subject);

// Throws a Fault that lists why the engine's graph cannot run this adapter.
void check_adapter(const EngineDirectory& engine, const Adapter& adapter);

// The engine's own adapter. Throws a Fault, also if it is not as the manifest says.
Adapter read_own_adapter(const EngineDirectory& engine);

// The pair scores of an engine: float16 [V, r] each, in memory that `owner` holds.
struct PairTables {
  int64_t rank = 0;
  const uint16_t* left = nullptr;
  const uint16_t* right = nullptr;
  std::shared_ptr<const void> owner;
};

// Those of a file's content, for an engine with this manifest; `subject` names it. Throws a Fault.
PairTables parse_pair_tables(std::string content, const Manifest& manifest,
                             const std::string& subject);

// Null for an engine without pair scores. They stay in their file, of which a text needs a few
// pages: a file that is changed meanwhile changes drafts, and no text. Throws a Fault if the tables
// are not the engine's.
std::shared_ptr<const PairTables> read_pair_tables(const EngineDirectory& engine);

}  // namespace bita
