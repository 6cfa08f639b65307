// The state that all steps of an engine share: its graph, its cache, and the text's place in it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "../device/value_block.h"
#include "bound_adapter.h"
#include "cached_text.h"
#include "graph_session.h"
#include "layout.h"
#include "page_pool.h"
#include "slab_text.h"

namespace bita {

class StepHost {
 public:
  // extra_cache_bytes: memory beyond that of one text. Throws a Fault.
  StepHost(const EngineDirectory& engine, std::unique_ptr<Device> device,
           const SessionSettings& settings, int64_t extra_cache_bytes, const Log& log);

  const Manifest& manifest() const { return manifest_; }
  Device& device() { return *device_; }
  GraphSession& graph() { return graph_; }
  PagePool* pool() { return pool_.get(); }  // null except for native operators
  bool is_native() const { return manifest_.is_native(); }
  int64_t capacity() const { return manifest_.capacity; }

  std::unique_ptr<CachedText> new_text();
  // The smallest step size, up to the largest of `sizes`, from which a row has the same bits in all
  // larger steps. For native operators that is always 1. With other linear layers it is at most 2
  // on CPUs, depending on the processor; on a GPU, libraries choose kernels by the number of rows.
  // So it is measured.
  int64_t min_exact_rows(const BoundAdapter& adapter, std::vector<int64_t> sizes);
  // Select the pages of a text for the steps that follow.
  void point_at(const CachedText& text);
  // Create a binding. With native operators it binds the pages as past and present caches, and the
  // selected text's place in them.
  OrtPointer<OrtIoBinding> new_binding();
  // The input `slots`: 0, 1, ... below `count`.
  OrtPointer<OrtValue> slots(int64_t count);

  // Register texts that may give up their pages, the least recently used first. The caller must
  // have the turn.
  void note_use(CachedText& text);
  void forget(const CachedText& text);
  // Make room for the slots that a step writes after the text; if there are too few, other texts
  // give up theirs.
  void make_room(CachedText& text, int64_t num_slots);
  void make_room(int64_t num_missing, const CachedText* kept);
  // Put the adapter values that steps read into a text's cache.
  void take_prefix(CachedText& text, const Adapter& adapter);
  // Share the rows of a text with a new one, unless there is no room for both.
  void fork(CachedText& text, CachedText& other);

 private:
  void fill_slot_numbers();
  bool has_free(int64_t num_missing);

  const Manifest& manifest_;
  const std::unique_ptr<Device> device_;
  GraphSession graph_;
  std::unique_ptr<PagePool> pool_;   // for native operators
  std::unique_ptr<SlabPool> slabs_;  // for other operators
  std::unique_ptr<DeviceMemory> slot_numbers_;
  std::vector<int64_t> text_lengths_, text_pages_;
  std::map<std::string, OrtPointer<OrtValue>> values_;
  std::vector<OrtPointer<OrtValue>> layers_;
  std::vector<CachedText*> used_;
};

// A step with fixed buffers: fill `token_ids`, then call `run`, which needs the engine's turn.
class BoundStep {
 public:
  BoundStep(StepHost& host, const Layout& layout, const BoundAdapter& adapter, bool with_logits);
  BoundStep(const BoundStep&) = delete;
  BoundStep& operator=(const BoundStep&) = delete;

  int64_t num_rows() const { return num_rows_; }
  int64_t num_slots() const { return num_slots_; }  // cache slots that it writes after the text
  // The maximum length of the text for this step, in tokens.
  int64_t max_length() const { return max_length_; }
  int64_t* token_ids() { return token_ids_; }  // mask rows are already filled
  const int64_t* top_ids(int64_t row) const { return top_ids_ + row * num_ranks_; }
  const float* top_logits(int64_t row) const { return top_logits_ + row * num_ranks_; }
  float* logits(int64_t row) { return logits_ + row * vocab_size_; }

  // Execute the step after the cached text. Throws an UnsoundFault if its results are not numbers,
  // and a Fault if there is no room or it fails.
  void run(CachedText& text);

 private:
  // The bound inputs and outputs, and the options for running the step.
  struct Binding {
    OrtPointer<OrtIoBinding> values;
    OrtPointer<OrtRunOptions> options;
    OrtPointer<OrtValue> slots;
  };

  void make_given(const Layout& layout);
  void make_fixed(const Layout& layout, bool with_logits);
  void make_results(bool with_logits);
  void make_new_rows();
  void bind(Binding& binding, const CachedText& text, int64_t num_seen) const;
  // The binding for a text's place in the cache, with as many slots in sight as it needs.
  const Binding& binding_for(const CachedText& text);
  void check_results(int64_t position) const;

  StepHost& host_;
  const BoundAdapter& adapter_;
  const int64_t num_rows_, num_outputs_, num_ranks_, vocab_size_, prefix_length_;
  int64_t num_slots_, max_length_;
  const int64_t num_known_;  // rows that plain decoding has too
  const bool captures_;      // all rows give tokens: a decode step, which is run again and again
  std::vector<int64_t> offsets_;
  ValueBlock given_, fixed_, results_;  // written for each step, once, by each step
  int64_t *token_ids_ = nullptr, *positions_ = nullptr, *row_slots_ = nullptr;
  int64_t* cache_length_ = nullptr;
  const int64_t* top_ids_ = nullptr;
  const float* top_logits_ = nullptr;
  float* logits_ = nullptr;
  std::unique_ptr<DeviceMemory> new_rows_;  // if the graph leaves writing the cache to us
  OrtPointer<OrtValue> new_rows_value_;
  std::map<std::pair<uint64_t, int64_t>, Binding> bindings_;  // by slab and slots in sight
};

}  // namespace bita
