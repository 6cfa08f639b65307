#include "engine_adapter.h"

#include <tuple>

#include "../base/files.h"

namespace bita {

void check_adapter(const EngineDirectory& engine, const Adapter& adapter) {
  const Manifest& manifest = engine.manifest;
  const std::vector<int64_t> wanted = {manifest.num_layers, manifest.num_kv_heads,
                                       adapter.prefix_length(), manifest.head_dim};
  std::vector<std::string> faults;
  if (adapter.prefix_length() >= manifest.capacity) {
    faults.push_back("its prefix of " + std::to_string(adapter.prefix_length()) +
                     " does not fit a cache of " + std::to_string(manifest.capacity) +
                     " slots: build an engine with --capacity");
  }
  if (adapter.prefix_keys.shape != wanted) {
    const auto sizes = [](const std::vector<int64_t>& shape) {
      const std::string listed = text_of(shape);
      return "(" + listed.substr(1, listed.size() - 2) + ")";
    };
    faults.push_back("prefix has shape " + sizes(adapter.prefix_keys.shape) + ", expected " +
                     sizes(wanted));
  }
  const int64_t width = adapter.mask_embeddings.shape[1];
  if (width != manifest.hidden_size) {
    faults.push_back("mask embeddings are " + std::to_string(width) + " wide, the model is " +
                     std::to_string(manifest.hidden_size));
  }
  if (adapter.lora_rank() && !manifest.lora_rank) {
    faults.push_back("it has LoRA of rank " + std::to_string(adapter.lora_rank()) +
                     ", the engine was built for an adapter without: build one with ADAPTER=...");
  }
  raise_faults(FaultKind::kAdapter, "adapter of engine " + text_of(engine.path), faults);
}

Adapter read_own_adapter(const EngineDirectory& engine) {
  const std::filesystem::path path = engine.file(kAdapterFile);
  Adapter adapter = read_adapter(path);
  const Manifest& manifest = engine.manifest;
  const std::tuple<const char*, int64_t, int64_t> counts[] = {
      {"num_masks", adapter.num_masks(), manifest.num_masks},
      {"prefix_length", adapter.prefix_length(), manifest.prefix_length},
      {"lora_rank", adapter.lora_rank(), manifest.lora_rank},
      {"pair_rank", adapter.pair_rank(), manifest.pair_rank}};
  std::vector<std::string> faults;
  for (const auto& [name, found, stated] : counts) {
    if (found != stated) {
      faults.push_back(std::string(name) + " is " + std::to_string(found) + ", the manifest says " +
                       std::to_string(stated));
    }
  }
  raise_faults(FaultKind::kAdapter, text_of(path) + " is not this engine's; rebuild the engine",
               faults);
  check_adapter(engine, adapter);
  return adapter;
}

}  // namespace bita
