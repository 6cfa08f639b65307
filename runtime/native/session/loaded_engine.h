// An engine in memory, which its sessions share.
#pragma once

#include <array>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include "../device/cuda_device.h"
#include "../engine/engine_directory.h"
#include "../engine/generation_defaults.h"
#include "engine_text.h"
#include "options.h"
#include "step_host.h"
#include "tree_decoder.h"
#include "turns.h"

namespace bita {

struct EngineSettings {
  SessionSettings session;
  std::string backend;  // "ort-cpu" or "ort-cuda"; empty for the one it was built for
  CudaSettings cuda;
  bool checks_hashes = false;       // also hash the weights
  bool is_without_text = false;     // token ids only: reads no tokenizer and no chat template
  int64_t cache_bytes = 256 << 20;  // for additional pages, beyond one text of full length
  Log log;
  std::function<std::unique_ptr<Device>()> new_device;  // for tests: replaces CudaDevice
};

// An adapter and a table of trees, with a decoder for each draft policy.
class Drafting {
 public:
  Drafting(StepHost& host, std::shared_ptr<const BoundAdapter> adapter, TreeTable table,
           const StepRules& rules, std::shared_ptr<const PairTables> pairs);

  // Created on first use. The caller must have the engine's turn, except for the engine's own
  // policy.
  TreeDecoder& decoder(DraftPolicy policy);
  const TreeTable& table() const { return table_; }
  const std::shared_ptr<const BoundAdapter>& adapter() const { return adapter_; }

 private:
  TreeTable table_for(DraftPolicy policy) const;

  StepHost& host_;
  std::shared_ptr<const BoundAdapter> adapter_;
  TreeTable table_;
  StepRules rules_;
  std::shared_ptr<const PairTables> pairs_;
  std::array<std::unique_ptr<TreeDecoder>, 3> decoders_;
};

class LoadedEngine {
 public:
  // Check and load the engine at a path. Throws a Fault that lists what is wrong.
  LoadedEngine(const std::filesystem::path& path, EngineSettings settings);

  const EngineDirectory& directory() const { return directory_; }
  const Manifest& manifest() const { return directory_.manifest; }
  const GenerationDefaults& defaults() const { return defaults_; }
  StepHost& host() { return *host_; }
  Turns& turns() { return turns_; }
  const Log& log() const { return settings_.log; }
  int num_threads() const { return host_->graph().num_threads(); }
  bool has_weights_in_memory() const { return host_->graph().has_weights_in_memory(); }
  // The backend that runs the steps.
  const std::string& backend() const {
    return settings_.backend.empty() ? manifest().backend : settings_.backend;
  }
  int64_t peak_device_bytes() const { return host_->device().peak_bytes(); }

  const EngineText& text() const { return text_; }

  // The engine's own adapter and trees (empty paths), or others from files.
  std::shared_ptr<Drafting> drafting(const std::string& tree_path, const std::string& adapter_path);
  // Whether its own trees draft tokens.
  bool uses_drafts() const { return !own_->table().is_ar(); }
  // The longest prompt that leaves room for an answer of one token.
  int64_t max_prompt_tokens() { return own_->decoder(DraftPolicy::kEngine).max_prompt_tokens(); }

 private:
  std::unique_ptr<Device> open_device() const;
  std::shared_ptr<Drafting> make_drafting(std::shared_ptr<const Adapter> adapter, TreeTable table);
  StepRules rules_for(const BoundAdapter& adapter, const TreeTable& table);

  EngineSettings settings_;
  EngineDirectory directory_;
  GenerationDefaults defaults_;
  EngineText text_;
  std::shared_ptr<const Adapter> own_adapter_;
  std::shared_ptr<const PairTables> pairs_;
  std::unique_ptr<StepHost> host_;
  int64_t min_exact_rows_ = 0;  // for all trees so far; 0 until it is known
  std::shared_ptr<Drafting> own_;
  Turns turns_;
};

}  // namespace bita
