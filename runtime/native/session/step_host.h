// What all steps of an engine share: its graph, its cache, and where a text is in it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "../engine/adapter.h"
#include "cached_text.h"
#include "graph_session.h"
#include "layout.h"
#include "page_pool.h"

namespace bita {

class StepHost;

// An adapter as steps read it: its values as tensors, and its prefix in pages of its own.
class BoundAdapter {
 public:
  // Throws a Fault if the graph cannot take it. Whoever makes or frees one has the engine's turn.
  BoundAdapter(StepHost& host, std::shared_ptr<const Adapter> adapter);
  ~BoundAdapter();
  BoundAdapter(const BoundAdapter&) = delete;
  BoundAdapter& operator=(const BoundAdapter&) = delete;

  const Adapter& adapter() const { return *adapter_; }
  int64_t prefix_length() const { return prefix_length_; }
  // Inputs of a step by their names in the graph.
  const std::map<std::string, OrtPointer<OrtValue>>& values() const { return values_; }
  // Whether rows of a step are mask rows; none is where the graph has LoRA and the adapter none.
  bool has_mask_rows() const { return has_mask_rows_; }

 private:
  void bind_packed_lora();
  void bind_lora();
  void write_prefix();

  StepHost& host_;
  std::shared_ptr<const Adapter> adapter_;
  int64_t prefix_length_;
  std::vector<int64_t> prefix_pages_, mask_shape_;
  int64_t num_prefix_pages_ = 0;
  bool has_mask_rows_ = true;
  std::vector<uint16_t> lora_memory_;              // of native operators
  std::map<std::string, FloatArray> lora_arrays_;  // of others
  std::map<std::string, OrtPointer<OrtValue>> values_;
};

class StepHost {
 public:
  // extra_cache_bytes: beyond what one text takes. Throws a Fault.
  StepHost(const EngineDirectory& engine, const SessionSettings& settings,
           int64_t extra_cache_bytes, const Log& log);

  const Manifest& manifest() const { return manifest_; }
  GraphSession& graph() { return graph_; }
  PagePool* pool() { return pool_.get(); }  // null but for native operators
  bool is_native() const { return manifest_.is_native(); }
  int64_t capacity() const { return manifest_.capacity; }

  std::unique_ptr<CachedText> new_text();
  // 1 where a step of one row gives the bits of larger ones here, else 2. Native operators do;
  // whether other linear layers depend on the number of rows is up to the processor, so it is
  // tried.
  int64_t least_rows(const BoundAdapter& adapter);
  // Say where a text is in the pages, for the steps that follow.
  void point_at(const CachedText& text);
  // A binding; of native operators past and present caches are the pages, and it says where a text
  // is in them.
  OrtPointer<OrtIoBinding> new_binding();

  // Texts that may give up their pages, the least recently used first. The caller has the turn.
  void note_use(CachedText& text);
  void forget(const CachedText& text);
  // Let the text take what a step writes after it; others give up their pages if there are too few.
  void make_room(CachedText& text, int64_t num_slots);
  void make_room(int64_t num_pages, const CachedText* kept);

 private:
  const Manifest& manifest_;
  GraphSession graph_;
  std::unique_ptr<PagePool> pool_;
  std::vector<int64_t> text_lengths_, text_pages_;
  std::map<std::string, OrtPointer<OrtValue>> values_;
  std::vector<OrtPointer<OrtValue>> layers_;
  std::vector<CachedText*> used_;
};

// A step with fixed buffers: fill `token_ids` and run. Whoever runs one has the engine's turn.
class BoundStep {
 public:
  BoundStep(StepHost& host, const Layout& layout, const BoundAdapter& adapter, bool with_logits);
  BoundStep(const BoundStep&) = delete;
  BoundStep& operator=(const BoundStep&) = delete;

  int64_t num_rows() const { return num_rows_; }
  int64_t num_slots() const { return num_slots_; }  // of the cache, that it writes after the text
  // Tokens that the text may have for this step.
  int64_t max_length() const { return max_length_; }
  int64_t* token_ids() { return token_ids_.data(); }  // mask rows are filled already
  const int64_t* top_ids(int64_t row) const { return top_ids_.data() + row * num_ranks_; }
  const float* top_logits(int64_t row) const { return top_logits_.data() + row * num_ranks_; }
  float* logits(int64_t row) { return logits_.data() + row * vocab_size_; }
  bool has_logits() const { return !logits_.empty(); }

  // Execute the step after the cached text. Throws an UnsoundFault if what it gives are not
  // numbers, and a Fault if it has no room, or fails.
  void run(CachedText& text);

 private:
  void bind_cache(CachedText& text);
  void bind_slots(int64_t num_used);
  OrtValue* own(void* data, size_t num_bytes, const std::vector<int64_t>& shape,
                ONNXTensorElementDataType type);
  void bind_input(const char* name, OrtValue* value);
  void bind_output(const char* name, OrtValue* value);
  void check_results(int64_t position) const;

  StepHost& host_;
  const int64_t num_rows_, num_ranks_, vocab_size_, prefix_length_;
  int64_t num_slots_, max_length_;
  std::vector<int64_t> offsets_, token_ids_, positions_, row_slots_, row_texts_, output_rows_;
  std::vector<int64_t> first_mask_row_, top_ids_;
  std::vector<uint8_t> sees_, sees_prefix_;
  std::vector<float> top_logits_, logits_;
  uint8_t wants_logits_;
  // of caches in slots
  int64_t cache_length_ = 0, bucket_ = 0, num_known_ = 0;
  uint64_t bound_text_ = 0;
  std::vector<int64_t> slots_;
  std::vector<uint8_t> new_rows_;
  OrtPointer<OrtValue> slots_value_;
  std::vector<OrtPointer<OrtValue>> values_;
  OrtPointer<OrtIoBinding> binding_;
};

}  // namespace bita
