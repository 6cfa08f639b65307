// What all steps of an engine share: its graph, its cache, and where a text is in it.
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
  // extra_cache_bytes: beyond what one text takes. Throws a Fault.
  StepHost(const EngineDirectory& engine, std::unique_ptr<Device> device,
           const SessionSettings& settings, int64_t extra_cache_bytes, const Log& log);

  const Manifest& manifest() const { return manifest_; }
  Device& device() { return *device_; }
  GraphSession& graph() { return graph_; }
  PagePool* pool() { return pool_.get(); }  // null but for native operators
  bool is_native() const { return manifest_.is_native(); }
  int64_t capacity() const { return manifest_.capacity; }

  std::unique_ptr<CachedText> new_text();
  // The least number of rows from which on steps give a row the same bits, up to the largest of
  // `sizes`. Native operators always do; on CPUs other linear layers do from two rows on, and
  // whether one row does is up to the processor; a GPU's libraries take another kernel by the
  // number of rows. So it is tried.
  int64_t min_exact_rows(const BoundAdapter& adapter, std::vector<int64_t> sizes);
  // Say where a text is in the pages, for the steps that follow.
  void point_at(const CachedText& text);
  // A binding; of native operators past and present caches are the pages, and it says where a text
  // is in them.
  OrtPointer<OrtIoBinding> new_binding();
  // The input `slots`, 0, 1, ... below `count`.
  OrtPointer<OrtValue> slots(int64_t count);

  // Texts that may give up their pages, the least recently used first. The caller has the turn.
  void note_use(CachedText& text);
  void forget(const CachedText& text);
  // Let the text take what a step writes after it; others give up theirs if there is too little.
  void make_room(CachedText& text, int64_t num_slots);
  void make_room(int64_t num_missing, const CachedText* kept);
  // Have what steps read of the adapter in a text's cache.
  void take_prefix(CachedText& text, const Adapter& adapter);
  // Have the rows of a text in a new one too, unless there is no room for both.
  void fork(CachedText& text, CachedText& other);

 private:
  void fill_slot_numbers();
  bool has_free(int64_t num_missing);

  const Manifest& manifest_;
  const std::unique_ptr<Device> device_;
  GraphSession graph_;
  std::unique_ptr<PagePool> pool_;   // of native operators
  std::unique_ptr<SlabPool> slabs_;  // of others
  std::unique_ptr<DeviceMemory> slot_numbers_;
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
  int64_t* token_ids() { return token_ids_; }  // mask rows are filled already
  const int64_t* top_ids(int64_t row) const { return top_ids_ + row * num_ranks_; }
  const float* top_logits(int64_t row) const { return top_logits_ + row * num_ranks_; }
  float* logits(int64_t row) { return logits_ + row * vocab_size_; }

  // Execute the step after the cached text. Throws an UnsoundFault if what it gives are not
  // numbers, and a Fault if it has no room, or fails.
  void run(CachedText& text);

 private:
  // Inputs and outputs where they lie, and the options of the step's runs.
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
  // The binding for where a text lies, with as many slots in sight as it needs.
  const Binding& binding_for(const CachedText& text);
  void check_results(int64_t position) const;

  StepHost& host_;
  const BoundAdapter& adapter_;
  const int64_t num_rows_, num_outputs_, num_ranks_, vocab_size_, prefix_length_;
  int64_t num_slots_, max_length_;
  const int64_t num_known_;  // rows that plain decoding has too
  const bool captures_;      // all rows give tokens: a decode step, which is run again and again
  std::vector<int64_t> offsets_;
  ValueBlock given_, fixed_, results_;  // in each step, once, by each step
  int64_t *token_ids_ = nullptr, *positions_ = nullptr, *row_slots_ = nullptr;
  int64_t* cache_length_ = nullptr;
  const int64_t* top_ids_ = nullptr;
  const float* top_logits_ = nullptr;
  float* logits_ = nullptr;
  std::unique_ptr<DeviceMemory> new_rows_;  // where the graph leaves it to us to write the cache
  OrtPointer<OrtValue> new_rows_value_;
  std::map<std::pair<uint64_t, int64_t>, Binding> bindings_;  // by slab and slots in sight
};

}  // namespace bita
