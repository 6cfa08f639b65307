#include "step_host.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "../engine/packed_lora.h"
#include "../operators/ort.h"
#include "buckets.h"
#include "paged_text.h"
#include "slab_text.h"
#include "soundness.h"

namespace bita {

namespace {

constexpr auto kWhole = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
constexpr auto kTruth = ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
constexpr auto kFloat32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
constexpr auto kFloat16 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;

OrtPointer<OrtValue> wholes(std::vector<int64_t>& values, const std::vector<int64_t>& shape) {
  return tensor_over(values.data(), values.size() * sizeof(int64_t), shape, kWhole);
}

int64_t size_of(const std::vector<int64_t>& shape) {
  int64_t size = 1;
  for (const int64_t each : shape) size *= each;
  return size;
}

// Copy a layer of stacked LoRA, [L, rows, columns], into an array that may have more ranks.
void fill_lora(const std::string& name, bool is_down, const FloatArray& stacked, int64_t layer,
               FloatArray& array) {
  const int64_t rows = stacked.shape[1], columns = stacked.shape[2];
  const int64_t wide_rows = array.shape[0], wide_columns = array.shape[1];
  const bool fits = is_down ? rows == wide_rows && columns <= wide_columns
                            : rows <= wide_rows && columns == wide_columns;
  if (!fits) {
    throw Fault(FaultKind::kAdapter,
                "the adapter's LoRA has shape " + text_of(std::vector<int64_t>{rows, columns}) +
                    " for " + name + ", the engine was built for " + text_of(array.shape) +
                    ": build an engine with ADAPTER=...");
  }
  for (int64_t row = 0; row < rows; ++row) {
    const auto first = stacked.values.begin() + (layer * rows + row) * columns;
    std::copy(first, first + columns, array.values.begin() + row * wide_columns);
  }
}

}  // namespace

BoundAdapter::BoundAdapter(StepHost& host, std::shared_ptr<const Adapter> adapter)
    : host_(host),
      adapter_(std::move(adapter)),
      prefix_length_(adapter_->prefix_length()),
      prefix_pages_(static_cast<size_t>(pages_for(host.capacity()))),
      mask_shape_(adapter_->mask_embeddings.shape) {
  // ONNX Runtime takes inputs that it does not write as memory that may be written
  auto& masks = const_cast<std::vector<float>&>(adapter_->mask_embeddings.values);
  values_["mask_embeddings"] =
      tensor_over(masks.data(), masks.size() * sizeof(float), mask_shape_, kFloat32);
  values_["prefix_length"] = tensor_over(&prefix_length_, sizeof prefix_length_, {1}, kWhole);
  if (!host_.is_native()) {
    bind_lora();
    return;
  }
  values_["prefix_pages"] = wholes(prefix_pages_, {static_cast<int64_t>(prefix_pages_.size())});
  bind_packed_lora();
  write_prefix();
}

BoundAdapter::~BoundAdapter() {
  for (int64_t i = 0; i < num_prefix_pages_; ++i) {
    host_.pool()->release(prefix_pages_[static_cast<size_t>(i)]);
  }
}

// By layer and site, zeros where the adapter has none, or less of a fixed rank.
void BoundAdapter::bind_lora() {
  for (const auto& [name, value] : host_.graph().inputs()) {
    if (name.rfind("lora.", 0) != 0) continue;
    const size_t layer_end = name.find('.', 5), site_end = name.find('.', layer_end + 1);
    const int64_t layer = std::stoll(name.substr(5, layer_end - 5));
    std::string own_name = "lora_";
    own_name.append(name, layer_end + 1, site_end - layer_end - 1).append("_");
    own_name.append(name, site_end + 1);
    const auto found = adapter_->lora.find(own_name);
    FloatArray& array = lora_arrays_[name];
    array.shape = value.shape;
    for (size_t i = 0; i < 2; ++i) {
      const int64_t own = found == adapter_->lora.end() ? 1 : found->second.shape[i + 1];
      if (array.shape[i] < 0) array.shape[i] = own;
    }
    array.values.resize(static_cast<size_t>(size_of(array.shape)));
    if (found != adapter_->lora.end())
      fill_lora(name, name.compare(site_end + 1, 4, "down") == 0, found->second, layer, array);
    values_[name] = tensor_over(array.values.data(), array.values.size() * sizeof(float),
                                array.shape, kFloat32);
  }
}

// One piece of memory, as Python has it: threads read it from one end to the other.
void BoundAdapter::bind_packed_lora() {
  std::map<std::string, HalfArray> packed = packed_lora(*adapter_);
  size_t num_halves = 0;
  for (const auto& [name, array] : packed) num_halves += array.values.size();
  lora_memory_.reserve(num_halves);
  for (const auto& [name, value] : host_.graph().inputs()) {
    if (name.rfind("lora.", 0) != 0) continue;
    const auto found = packed.find(name);
    std::vector<int64_t> shape = value.shape;
    if (found == packed.end()) {  // it adds nothing
      has_mask_rows_ = false;
      for (int64_t& size : shape) size = std::max<int64_t>(size, 0);
      values_[name] = tensor_over(nullptr, 0, shape, kFloat16);
      if (size_of(shape) != 0) {
        throw Fault(FaultKind::kAdapter,
                    "the graph needs LoRA of a fixed rank, and the adapter has none: build an "
                    "engine with ADAPTER=...");
      }
      continue;
    }
    bool fits = shape.size() == found->second.shape.size();
    for (size_t i = 0; fits && i < shape.size(); ++i) {
      fits = shape[i] < 0 || shape[i] == found->second.shape[i];
    }
    if (!fits) {
      throw Fault(FaultKind::kAdapter, "the adapter's LoRA has shape " +
                                           text_of(found->second.shape) + " for " + name +
                                           ", the engine was built for " + text_of(shape) +
                                           ": build an engine with ADAPTER=...");
    }
    uint16_t* place = lora_memory_.data() + lora_memory_.size();
    const auto& halves = found->second.values;
    lora_memory_.insert(lora_memory_.end(), halves.begin(), halves.end());
    values_[name] =
        tensor_over(place, halves.size() * sizeof(uint16_t), found->second.shape, kFloat16);
  }
}

void BoundAdapter::write_prefix() {
  PagePool& pool = *host_.pool();
  host_.make_room(pages_for(prefix_length_), nullptr);
  for (int64_t i = 0; i < prefix_length_; ++i) {
    if (i % kPageSlots == 0) {
      prefix_pages_[static_cast<size_t>(num_prefix_pages_)] = pool.allocate();
      ++num_prefix_pages_;
    }
    pool.write_prefix(*adapter_, i, prefix_pages_[static_cast<size_t>(num_prefix_pages_ - 1)],
                      i % kPageSlots);
  }
}

StepHost::StepHost(const EngineDirectory& engine, const SessionSettings& settings,
                   int64_t extra_cache_bytes, const Log& log)
    : manifest_(engine.manifest),
      graph_(engine, settings, log),
      text_lengths_(1),
      text_pages_(static_cast<size_t>(pages_for(manifest_.capacity))) {
  if (!is_native()) return;
  pool_ = std::make_unique<PagePool>(manifest_, graph_.cache_type(), extra_cache_bytes);
  values_["text_lengths"] = wholes(text_lengths_, {1});
  values_["text_pages"] = wholes(text_pages_, {1, static_cast<int64_t>(text_pages_.size())});
  const std::vector<int64_t> shape = {pool_->num_pages(), manifest_.num_kv_heads, 2,
                                      kPageSlots * manifest_.head_dim};
  for (int64_t layer = 0; layer < manifest_.num_layers; ++layer) {
    layers_.push_back(tensor_over(pool_->layer(layer),
                                  static_cast<size_t>(pool_->num_pages() * pool_->page_bytes()),
                                  shape, pool_->type()));
  }
}

std::unique_ptr<CachedText> StepHost::new_text() {
  if (pool_) return std::make_unique<PagedText>(*pool_);
  return std::make_unique<SlabText>(manifest_, graph_.cache_type());
}

int64_t StepHost::least_rows(const BoundAdapter& adapter) {
  if (is_native()) return 1;
  if (graph_.least_slots() <= 1) return 2;
  const std::unique_ptr<CachedText> text = new_text();
  text->take_prefix(adapter.adapter());
  std::vector<float> logits[2];
  for (int64_t rows = 1; rows <= 2; ++rows) {
    BoundStep step(*this, tree_layout(Tree::root_only(), rows), adapter, false);
    step.token_ids()[0] = 1;
    step.run(*text);
    logits[rows - 1].assign(step.top_logits(0), step.top_logits(0) + manifest_.num_ranks);
  }
  return logits[0] == logits[1] ? 1 : 2;
}

void StepHost::point_at(const CachedText& text) {
  const auto& pages = static_cast<const PagedText&>(text).pages();
  text_lengths_[0] = text.length();
  std::copy(pages.begin(), pages.end(), text_pages_.begin());
}

OrtPointer<OrtIoBinding> StepHost::new_binding() {
  OrtPointer<OrtIoBinding> binding = graph_.new_binding();
  for (const auto& [name, value] : values_) {
    check(ort().BindInput(binding.get(), name.c_str(), value.get()));
  }
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    const std::string name = "." + std::to_string(layer) + ".pages";
    OrtValue* pages = layers_[layer].get();
    check(ort().BindInput(binding.get(), ("past" + name).c_str(), pages));
    check(ort().BindOutput(binding.get(), ("present" + name).c_str(), pages));
  }
  return binding;
}

void StepHost::note_use(CachedText& text) {
  forget(text);
  used_.push_back(&text);
}

void StepHost::forget(const CachedText& text) {
  used_.erase(std::remove(used_.begin(), used_.end(), &text), used_.end());
}

void StepHost::make_room(CachedText& text, int64_t num_slots) {
  make_room(text.num_missing(num_slots), &text);
}

void StepHost::make_room(int64_t num_pages, const CachedText* kept) {
  for (CachedText* text : used_) {
    if (!pool_ || pool_->num_free() >= num_pages) return;
    if (text != kept) text->keep(0);
  }
}

BoundStep::BoundStep(StepHost& host, const Layout& layout, const BoundAdapter& adapter,
                     bool with_logits)
    : host_(host),
      num_rows_(layout.num_rows()),
      num_ranks_(host.manifest().num_ranks),
      vocab_size_(host.manifest().vocab_size),
      prefix_length_(adapter.prefix_length()),
      num_slots_(std::max(num_rows_, host.graph().least_slots())),
      max_length_(host.capacity() - adapter.prefix_length() - num_slots_),
      offsets_(layout.offsets),
      token_ids_(static_cast<size_t>(num_rows_)),
      positions_(static_cast<size_t>(num_rows_)),
      row_slots_(static_cast<size_t>(num_rows_)),
      row_texts_(static_cast<size_t>(num_rows_)),
      output_rows_(layout.output_rows),
      first_mask_row_{adapter.has_mask_rows() ? layout.first_mask_row()
                                              : std::numeric_limits<int64_t>::max()},
      top_ids_(output_rows_.size() * static_cast<size_t>(num_ranks_)),
      sees_(layout.sees),
      sees_prefix_(layout.sees_prefix()),
      top_logits_(top_ids_.size()),
      logits_(with_logits ? output_rows_.size() * static_cast<size_t>(vocab_size_) : 0),
      wants_logits_(with_logits),
      binding_(host.new_binding()) {
  for (size_t row = 0; row < token_ids_.size(); ++row) {
    if (layout.mask_index[row] >= 0) token_ids_[row] = vocab_size_ + layout.mask_index[row];
  }
  const auto bind_wholes = [&](const char* name, std::vector<int64_t>& values,
                               const std::vector<int64_t>& shape) {
    bind_input(name, own(values.data(), values.size() * sizeof(int64_t), shape, kWhole));
  };
  const auto num_outputs = static_cast<int64_t>(output_rows_.size());
  bind_wholes("token_ids", token_ids_, {1, num_rows_});
  bind_wholes("positions", positions_, {1, num_rows_});
  bind_wholes("row_slots", row_slots_, {num_rows_});
  bind_wholes("row_texts", row_texts_, {num_rows_});
  bind_wholes("output_rows", output_rows_, {num_outputs});
  bind_wholes("first_mask_row", first_mask_row_, {1});
  bind_input("sees", own(sees_.data(), sees_.size(), {num_rows_, num_rows_}, kTruth));
  bind_input("sees_prefix", own(sees_prefix_.data(), sees_prefix_.size(), {num_rows_}, kTruth));
  bind_input("wants_logits", own(&wants_logits_, 1, {1}, kTruth));
  for (const auto& [name, value] : adapter.values()) bind_input(name.c_str(), value.get());
  bind_output("top_ids", own(top_ids_.data(), top_ids_.size() * sizeof(int64_t),
                             {num_outputs, num_ranks_}, kWhole));
  bind_output("top_logits", own(top_logits_.data(), top_logits_.size() * sizeof(float),
                                {num_outputs, num_ranks_}, kFloat32));
  if (with_logits) {
    bind_output("logits", own(logits_.data(), logits_.size() * sizeof(float),
                              {num_outputs, vocab_size_}, kFloat32));
  }
  bind_input("cache_length", own(&cache_length_, sizeof cache_length_, {1}, kWhole));
  num_known_ = output_rows_[0] + 1;
  if (host_.graph().gives_rows()) {
    const Manifest& manifest = host.manifest();
    const auto type = host_.graph().cache_type();
    const std::vector<int64_t> shape = {2 * manifest.num_layers, manifest.num_kv_heads, num_rows_,
                                        manifest.head_dim};
    new_rows_.resize(static_cast<size_t>(size_of(shape)) * (type == kFloat16 ? 2 : 4));
    bind_output("rows", own(new_rows_.data(), new_rows_.size(), shape, type));
  }
}

void BoundStep::run(CachedText& text) {
  const int64_t length = text.length();
  if (length > max_length_) {
    throw Fault(FaultKind::kEngine, "a step of " + std::to_string(num_rows_) +
                                        " rows does not fit after " + std::to_string(length) +
                                        " tokens in " + std::to_string(host_.capacity()) +
                                        " cache slots");
  }
  host_.make_room(text, num_slots_);
  text.reserve(num_slots_);
  bind_cache(text);
  for (size_t row = 0; row < positions_.size(); ++row) {
    positions_[row] = offsets_[row] + length;
    row_slots_[row] = static_cast<int64_t>(row) + length;
  }
  host_.graph().run(*binding_);
  check_results(length);
  if (!new_rows_.empty()) static_cast<SlabText&>(text).write(new_rows_.data(), num_rows_);
}

// Let the step read and write the cache of a text.
void BoundStep::bind_cache(CachedText& text) {
  if (host_.is_native()) {
    host_.point_at(text);
    return;
  }
  auto& slab = static_cast<SlabText&>(text);
  cache_length_ = prefix_length_ + text.length();
  bind_slots(cache_length_);
  if (bound_text_ == slab.number()) return;
  for (const auto& [name, value] : slab.values()) {
    check(ort().BindInput(binding_.get(), ("past." + name).c_str(), value.get()));
    if (!new_rows_.empty()) continue;
    check(ort().BindOutput(binding_.get(), ("present." + name).c_str(), value.get()));
  }
  bound_text_ = slab.number();
}

// Let the step look at as many slots as the text needs, where the graph lets us say.
void BoundStep::bind_slots(int64_t num_used) {
  if (!host_.graph().has_input("slots")) return;
  const int64_t bucket = bucket_of(host_.capacity(), num_used, num_known_, num_slots_);
  if (bucket == bucket_) return;
  bucket_ = bucket;
  slots_.resize(static_cast<size_t>(bucket));
  std::iota(slots_.begin(), slots_.end(), 0);
  slots_value_ = wholes(slots_, {bucket});
  check(ort().BindInput(binding_.get(), "slots", slots_value_.get()));
}

OrtValue* BoundStep::own(void* data, size_t num_bytes, const std::vector<int64_t>& shape,
                         ONNXTensorElementDataType type) {
  values_.push_back(tensor_over(data, num_bytes, shape, type));
  return values_.back().get();
}

void BoundStep::bind_input(const char* name, OrtValue* value) {
  if (host_.graph().has_input(name)) check(ort().BindInput(binding_.get(), name, value));
}

void BoundStep::bind_output(const char* name, OrtValue* value) {
  check(ort().BindOutput(binding_.get(), name, value));
}

void BoundStep::check_results(int64_t position) const {
  for (const int64_t id : top_ids_) {
    if (id >= 0 && id < vocab_size_) continue;
    throw Fault(FaultKind::kEngine, "the graph gave token id " + std::to_string(id) +
                                        ", not one in [0, " + std::to_string(vocab_size_) +
                                        "); rebuild the engine");
  }
  const auto fail = [&](const char* what) {
    throw UnsoundFault(FaultKind::kEngine,
                       unsound_message(what, "step at position " + std::to_string(position)));
  };
  const auto is_finite = [](float logit) { return std::isfinite(logit); };
  if (!std::all_of(top_logits_.begin(), top_logits_.end(), is_finite)) fail("not numbers");
  const auto is_zero = [](float logit) { return logit == 0.0f; };
  if (std::all_of(top_logits_.begin(), top_logits_.begin() + num_ranks_, is_zero)) {
    fail("all zero");
  }
}

}  // namespace bita
