// The manifest of an engine: its properties, and the size and sha256 of every other file.
//
// `bita/manifest.py` writes it; messages are the same here as there.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "../base/json.h"

namespace bita {

constexpr const char* kManifestFile = "manifest.json";
constexpr const char* kGraphFile = "model.onnx";
constexpr const char* kWeightsFile = "model.onnx.data";
constexpr const char* kPlanFile = "model.plan";
constexpr const char* kAdapterFile = "adapter.safetensors";
constexpr const char* kPairsFile = "pairs.safetensors";
constexpr const char* kTreeFile = "tree.json";
constexpr const char* kTokenizerFile = "tokenizer.json";
constexpr const char* kGenerationFile = "generation.json";
constexpr const char* kTemplateFile = "chat_template.jinja";
constexpr const char* kPiecesFile = "chat_pieces.json";

constexpr int64_t kPageSlots = 16;  // slots of a page in a paged cache

// Letters as in the documentation of the step graph.
struct Manifest {
  std::string model, family, backend, precision, mode, dialect, created_by;
  int64_t num_layers = 0;    // L
  int64_t num_kv_heads = 0;  // H
  int64_t head_dim = 0;      // D
  int64_t hidden_size = 0;
  int64_t vocab_size = 0;     // V
  int64_t capacity = 0;       // C: cache slots for the prefix, the text and the rows of a step
  int64_t num_ranks = 0;      // k: ids returned for each row
  int64_t num_masks = 0;      // M
  int64_t prefix_length = 0;  // P
  int64_t lora_rank = 0;      // 0 if the graph has no LoRA; otherwise it takes any rank
  int64_t pair_rank = 0;      // rank of the adapter's pair scores; 0 without
  std::map<std::string, std::string> requires_versions;  // package: minimum version

  bool is_native() const { return dialect == "native"; }
};

// Read the JSON object of the manifest in a directory. Throws a Fault if there is none.
Json read_manifest(const std::filesystem::path& directory);

// Why this library cannot read the manifest, whatever its other values; empty if it can.
std::vector<std::string> format_faults(const Json& data);

// Convert a JSON object; invalid values are reported in `faults`.
Manifest parse_manifest(const Json& data, std::vector<std::string>& faults);

}  // namespace bita
