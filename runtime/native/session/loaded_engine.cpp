#include "loaded_engine.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <algorithm>
#include <exception>
#include <thread>

#include "../base/files.h"
#include "../device/host_device.h"
#include "../engine/engine_adapter.h"
#include "ort_library.h"

namespace bita {

namespace {

// Runs work on another thread, or on this one if none can be started; `finish` rethrows its
// exception.
class Background {
 public:
  template <class Work>
  explicit Background(Work work) {
    const auto guarded = [this, work] {
      try {
        work();
      } catch (...) {
        error_ = std::current_exception();
      }
    };
    try {
      thread_ = std::thread(guarded);
    } catch (const std::system_error&) {
      guarded();
    }
  }
  ~Background() {
    if (thread_.joinable()) thread_.join();
  }
  Background(const Background&) = delete;
  Background& operator=(const Background&) = delete;

  void finish() {
    if (thread_.joinable()) thread_.join();
    if (error_) std::rethrow_exception(error_);
  }

 private:
  std::thread thread_;
  std::exception_ptr error_;
};

// Every engine runs on a CPU; those built for ONNX Runtime's CUDA provider also run on that.
void check_backend(const EngineDirectory& engine, const std::string& wanted) {
  const std::string& built_for = engine.manifest.backend;
  const std::string& backend = wanted.empty() ? built_for : wanted;
  const std::string place = "engine " + text_of(engine.path) + " was built for " + built_for;
  if (backend == "ort-cpu" || (backend == "ort-cuda" && built_for == backend)) return;
  if (wanted.empty()) {
    throw Fault(FaultKind::kEngine, place +
                                        ", which this library does not run: open it with backend "
                                        "\"ort-cpu\", build one with BACKEND=ort-cuda, or run it "
                                        "from Python");
  }
  if (backend == "ort-cuda") {
    throw Fault(FaultKind::kEngine, place + ", not for ort-cuda: make engine MODEL=" +
                                        engine.manifest.model + " BACKEND=ort-cuda");
  }
  throw Fault(FaultKind::kUse, "backend " + shown(wanted) + " is not one of ort-cpu, ort-cuda");
}

// Return memory to the system that was only needed to read files and create the session.
void return_unused_memory() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

}  // namespace

Drafting::Drafting(StepHost& host, std::shared_ptr<const BoundAdapter> adapter, TreeTable table,
                   const StepRules& rules, std::shared_ptr<const PairTables> pairs)
    : host_(host),
      adapter_(std::move(adapter)),
      table_(std::move(table)),
      rules_(rules),
      pairs_(std::move(pairs)) {
  decoder(DraftPolicy::kEngine);  // reports its faults at once
}

TreeDecoder& Drafting::decoder(DraftPolicy policy) {
  std::unique_ptr<TreeDecoder>& found = decoders_[static_cast<size_t>(policy)];
  if (!found) {
    found = std::make_unique<TreeDecoder>(host_, adapter_, table_for(policy), rules_, pairs_);
  }
  return *found;
}

TreeTable Drafting::table_for(DraftPolicy policy) const {
  if (policy == DraftPolicy::kOff) return TreeTable::of(Tree::root_only());
  TreeTable table = table_;
  if (policy == DraftPolicy::kEngine) return table;
  table.costs.clear();
  if (!table.is_ar()) return table;
  const int64_t num_masks = adapter_->adapter().num_masks();
  return TreeTable::of(Tree::chain(num_masks, num_masks));
}

LoadedEngine::LoadedEngine(const fs::path& path, EngineSettings settings)
    : settings_(std::move(settings)), directory_(open_directory(path, settings_.checks_hashes)) {
  const Manifest& manifest = directory_.manifest;
  check_backend(directory_, settings_.backend);
  defaults_ = read_generation_defaults(directory_.file(kGenerationFile), manifest.vocab_size);
  Background text([this] {
    if (!settings_.is_without_text) text_ = EngineText(directory_);
  });
  TreeTable table = read_trees(directory_.file(kTreeFile), "rebuild the engine");
  own_adapter_ = std::make_shared<const Adapter>(read_own_adapter(directory_));
  pairs_ = read_pair_tables(directory_);
  ort_library(settings_.session.onnxruntime_path);
  host_ = std::make_unique<StepHost>(directory_, open_device(), settings_.session,
                                     settings_.cache_bytes, settings_.log);
  own_ = make_drafting(own_adapter_, std::move(table));
  text.finish();
  return_unused_memory();
}

std::unique_ptr<Device> LoadedEngine::open_device() const {
  if (backend() == "ort-cpu") return std::make_unique<HostDevice>();
  if (settings_.new_device) return settings_.new_device();
  return std::make_unique<CudaDevice>(settings_.cuda);
}

std::shared_ptr<Drafting> LoadedEngine::drafting(const std::string& tree_path,
                                                 const std::string& adapter_path) {
  if (tree_path.empty() && adapter_path.empty()) return own_;
  TreeTable table = tree_path.empty() ? own_->table() : read_trees(tree_path, "use another tree");
  std::shared_ptr<const Adapter> adapter = own_adapter_;
  if (!adapter_path.empty()) {
    adapter = std::make_shared<const Adapter>(read_adapter(adapter_path));
    check_adapter(directory_, *adapter);
  }
  const Turn turn(turns_);
  return make_drafting(std::move(adapter), std::move(table));
}

std::shared_ptr<Drafting> LoadedEngine::make_drafting(std::shared_ptr<const Adapter> adapter,
                                                      TreeTable table) {
  std::shared_ptr<const PairTables> pairs;
  if (!adapter->pairs.empty()) {
    const auto same = [](const auto& ours, const auto& theirs) {
      return ours.first == theirs.first && ours.second.values == theirs.second.values;
    };
    if (!pairs_ || !std::equal(adapter->pairs.begin(), adapter->pairs.end(),
                               own_adapter_->pairs.begin(), own_adapter_->pairs.end(), same)) {
      throw Fault(FaultKind::kAdapter, "the adapter has other pair scores than engine " +
                                           text_of(directory_.path) +
                                           ": build an engine with it (ADAPTER=...)");
    }
    pairs = pairs_;
  }
  auto bound = std::make_shared<const BoundAdapter>(*host_, std::move(adapter));
  const StepRules rules = rules_for(*bound, table);
  return std::make_shared<Drafting>(*host_, std::move(bound), std::move(table), rules,
                                    std::move(pairs));
}

// Rows of native operators have the same bits wherever they are placed. With other operators a
// branch may only be accepted in mode "tree", and the smallest step has two rows if a step of one
// row has other bits; an engine that decodes plainly is its own reference. On CPUs, attention also
// computes what causality hides, so smaller pieces of a prompt are faster.
StepRules LoadedEngine::rules_for(const BoundAdapter& adapter, const TreeTable& table) {
  if (manifest().is_native()) return {};
  const bool on_host = host_->device().is_host();
  if (!min_exact_rows_ || !on_host) {
    std::vector<int64_t> sizes = {std::max<int64_t>(min_exact_rows_, 1)};
    for (const Tree& tree : table.trees) sizes.push_back(tree.num_rows());
    min_exact_rows_ = std::max(min_exact_rows_, host_->min_exact_rows(adapter, std::move(sizes)));
  }
  const bool is_plain = !own_ && table.is_ar();
  return {is_plain ? 1 : min_exact_rows_, on_host ? 128 : 256, manifest().mode == "tree"};
}

}  // namespace bita
