#include "step_host.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "../operators/ort.h"
#include "buckets.h"
#include "paged_text.h"
#include "soundness.h"

namespace bita {

namespace {

constexpr auto kWhole = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
constexpr auto kTruth = ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
constexpr auto kFloat32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;

}  // namespace

StepHost::StepHost(const EngineDirectory& engine, std::unique_ptr<Device> device,
                   const SessionSettings& settings, int64_t extra_cache_bytes, const Log& log)
    : manifest_(engine.manifest),
      device_(std::move(device)),
      graph_(engine, *device_, settings, log),
      text_lengths_(1),
      text_pages_(static_cast<size_t>(pages_for(manifest_.capacity))) {
  if (!is_native()) {
    slabs_ =
        std::make_unique<SlabPool>(*device_, manifest_, graph_.cache_type(), extra_cache_bytes);
    if (graph_.has_input("slots")) fill_slot_numbers();
    return;
  }
  pool_ = std::make_unique<PagePool>(manifest_, graph_.cache_type(), extra_cache_bytes);
  const auto add_wholes = [&](const char* name, std::vector<int64_t>& values,
                              const std::vector<int64_t>& shape) {
    values_[name] = device_->tensor(values.data(), values.size() * sizeof(int64_t), shape, kWhole);
  };
  add_wholes("text_lengths", text_lengths_, {1});
  add_wholes("text_pages", text_pages_, {1, static_cast<int64_t>(text_pages_.size())});
  const std::vector<int64_t> shape = {pool_->num_pages(), manifest_.num_kv_heads, 2,
                                      kPageSlots * manifest_.head_dim};
  for (int64_t layer = 0; layer < manifest_.num_layers; ++layer) {
    layers_.push_back(device_->tensor(pool_->layer(layer),
                                      static_cast<size_t>(pool_->num_pages() * pool_->page_bytes()),
                                      shape, pool_->type()));
  }
}

void StepHost::fill_slot_numbers() {
  std::vector<int64_t> numbers(static_cast<size_t>(manifest_.capacity));
  std::iota(numbers.begin(), numbers.end(), 0);
  const size_t num_bytes = numbers.size() * sizeof(int64_t);
  slot_numbers_ = std::make_unique<DeviceMemory>(*device_, num_bytes);
  device_->copy(slot_numbers_->address(), numbers.data(), num_bytes);
  device_->wait();
}

OrtPointer<OrtValue> StepHost::slots(int64_t count) {
  return device_->tensor(slot_numbers_->address(), static_cast<size_t>(count) * sizeof(int64_t),
                         {count}, kWhole);
}

std::unique_ptr<CachedText> StepHost::new_text() {
  if (pool_) return std::make_unique<PagedText>(*pool_);
  return std::make_unique<SlabText>(*slabs_);
}

int64_t StepHost::min_exact_rows(const BoundAdapter& adapter, std::vector<int64_t> sizes) {
  if (is_native()) return 1;
  if (device_->is_host()) {
    if (graph_.min_slots() <= 1) return 2;
    sizes = {1, 2};
  }
  const std::unique_ptr<CachedText> text = new_text();
  take_prefix(*text, adapter.adapter());
  std::sort(sizes.begin(), sizes.end(), std::greater<>());
  std::vector<float> expected;
  int64_t least = sizes.front();
  for (const int64_t rows : sizes) {
    BoundStep step(*this, tree_layout(Tree::root_only(), rows), adapter, false);
    step.token_ids()[0] = 1;
    step.run(*text);
    const std::vector<float> found(step.top_logits(0), step.top_logits(0) + manifest_.num_ranks);
    if (expected.empty()) expected = found;
    if (found != expected) break;
    least = rows;
  }
  return least;
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

bool StepHost::has_free(int64_t num_missing) {
  if (!num_missing) return true;
  return pool_ ? pool_->num_free() >= num_missing : slabs_->has_free();
}

void StepHost::make_room(int64_t num_missing, const CachedText* kept) {
  for (CachedText* text : used_) {
    if (has_free(num_missing)) return;
    if (text != kept) text->give_up();
  }
}

void StepHost::take_prefix(CachedText& text, const Adapter& adapter) {
  make_room(text, 0);
  text.take_prefix(adapter);
}

void StepHost::fork(CachedText& text, CachedText& other) {
  note_use(text);
  make_room(other.num_missing(0), &text);
  if (has_free(other.num_missing(0))) other.share(text);
  note_use(other);
}

BoundStep::BoundStep(StepHost& host, const Layout& layout, const BoundAdapter& adapter,
                     bool with_logits)
    : host_(host),
      adapter_(adapter),
      num_rows_(layout.num_rows()),
      num_outputs_(static_cast<int64_t>(layout.output_rows.size())),
      num_ranks_(host.manifest().num_ranks),
      vocab_size_(host.manifest().vocab_size),
      prefix_length_(adapter.prefix_length()),
      num_slots_(std::max(num_rows_, host.graph().min_slots())),
      max_length_(host.capacity() - adapter.prefix_length() - num_slots_),
      num_known_(layout.output_rows[0] + 1),
      captures_(num_outputs_ == num_rows_),
      offsets_(layout.offsets),
      given_(host.device()),
      fixed_(host.device()),
      results_(host.device()) {
  make_given(layout);
  make_fixed(layout, with_logits);
  make_results(with_logits);
  if (host_.graph().gives_rows()) make_new_rows();
}

// Create the inputs that change from step to step.
void BoundStep::make_given(const Layout& layout) {
  const size_t token_ids = given_.add("token_ids", {1, num_rows_}, kWhole);
  const size_t positions = given_.add("positions", {1, num_rows_}, kWhole);
  const size_t row_slots = given_.add("row_slots", {num_rows_}, kWhole);
  const size_t cache_length = given_.add("cache_length", {1}, kWhole);
  given_.allocate();
  token_ids_ = given_.host<int64_t>(token_ids);
  positions_ = given_.host<int64_t>(positions);
  row_slots_ = given_.host<int64_t>(row_slots);
  cache_length_ = given_.host<int64_t>(cache_length);
  for (int64_t row = 0; row < num_rows_; ++row) {
    const int64_t mask = layout.mask_index[static_cast<size_t>(row)];
    if (mask >= 0) token_ids_[row] = vocab_size_ + mask;
  }
}

void BoundStep::make_fixed(const Layout& layout, bool with_logits) {
  const size_t row_texts = fixed_.add("row_texts", {num_rows_}, kWhole);
  const size_t output_rows = fixed_.add("output_rows", {num_outputs_}, kWhole);
  const size_t first_mask_row = fixed_.add("first_mask_row", {1}, kWhole);
  const size_t sees = fixed_.add("sees", {num_rows_, num_rows_}, kTruth);
  const size_t sees_prefix = fixed_.add("sees_prefix", {num_rows_}, kTruth);
  const size_t wants_logits = fixed_.add("wants_logits", {1}, kTruth);
  fixed_.allocate();
  std::fill_n(fixed_.host<int64_t>(row_texts), num_rows_, 0);  // all rows belong to one text
  const auto& rows = layout.output_rows;
  std::copy(rows.begin(), rows.end(), fixed_.host<int64_t>(output_rows));
  *fixed_.host<int64_t>(first_mask_row) =
      adapter_.has_mask_rows() ? layout.first_mask_row() : std::numeric_limits<int64_t>::max();
  std::copy(layout.sees.begin(), layout.sees.end(), fixed_.host<uint8_t>(sees));
  const std::vector<uint8_t> seeing = layout.sees_prefix();
  std::copy(seeing.begin(), seeing.end(), fixed_.host<uint8_t>(sees_prefix));
  *fixed_.host<uint8_t>(wants_logits) = with_logits;
  fixed_.upload();
}

void BoundStep::make_results(bool with_logits) {
  const size_t top_ids = results_.add("top_ids", {num_outputs_, num_ranks_}, kWhole);
  const size_t top_logits = results_.add("top_logits", {num_outputs_, num_ranks_}, kFloat32);
  if (with_logits) results_.add("logits", {num_outputs_, vocab_size_}, kFloat32);
  results_.allocate();
  top_ids_ = results_.host<int64_t>(top_ids);
  top_logits_ = results_.host<float>(top_logits);
  if (with_logits) logits_ = results_.host<float>(top_logits + 1);
}

void BoundStep::make_new_rows() {
  const Manifest& manifest = host_.manifest();
  const auto type = host_.graph().cache_type();
  const std::vector<int64_t> shape = {2 * manifest.num_layers, manifest.num_kv_heads, num_rows_,
                                      manifest.head_dim};
  const size_t num_bytes = static_cast<size_t>(num_elements(shape)) * element_bytes(type);
  new_rows_ = std::make_unique<DeviceMemory>(host_.device(), num_bytes);
  new_rows_value_ = host_.device().tensor(new_rows_->address(), num_bytes, shape, type);
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
  if (host_.is_native()) host_.point_at(text);
  for (int64_t row = 0; row < num_rows_; ++row) {
    positions_[row] = offsets_[static_cast<size_t>(row)] + length;
    row_slots_[row] = row + length;
  }
  *cache_length_ = prefix_length_ + length;
  const Binding& binding = binding_for(text);
  given_.upload();
  host_.graph().run(*binding.values, binding.options.get());
  results_.download();
  if (new_rows_) static_cast<SlabText&>(text).write(new_rows_->address(), num_rows_);
  host_.device().wait();
  check_results(length);
}

const BoundStep::Binding& BoundStep::binding_for(const CachedText& text) {
  uint64_t slab = 0;
  int64_t num_seen = 0;
  if (!host_.is_native()) slab = static_cast<const SlabText&>(text).slab().number();
  if (host_.graph().has_input("slots")) {
    num_seen = bucket_of(host_.capacity(), *cache_length_, num_known_, num_slots_);
  }
  const auto found = bindings_.find({slab, num_seen});
  if (found != bindings_.end()) return found->second;
  if (host_.device().is_host())
    bindings_.clear();  // nothing was captured, and there may be many slabs
  Binding& binding = bindings_[{slab, num_seen}];
  try {
    bind(binding, text, num_seen);
  } catch (...) {
    bindings_.erase({slab, num_seen});
    throw;
  }
  return binding;
}

void BoundStep::bind(Binding& binding, const CachedText& text, int64_t num_seen) const {
  binding.values = host_.new_binding();
  binding.options = host_.device().run_options(captures_);
  const auto bind_input = [&](const char* name, OrtValue* value) {
    if (host_.graph().has_input(name)) check(ort().BindInput(binding.values.get(), name, value));
  };
  const auto bind_output = [&](const char* name, OrtValue* value) {
    check(ort().BindOutput(binding.values.get(), name, value));
  };
  for (const ValueBlock* block : {&given_, &fixed_}) {
    for (size_t i = 0; i < block->size(); ++i) bind_input(block->name(i), block->value(i));
  }
  for (const auto& [name, value] : adapter_.values()) bind_input(name.c_str(), value.get());
  for (size_t i = 0; i < results_.size(); ++i) bind_output(results_.name(i), results_.value(i));
  if (num_seen) {
    binding.slots = host_.slots(num_seen);
    bind_input("slots", binding.slots.get());
  }
  if (new_rows_) bind_output("rows", new_rows_value_.get());
  if (host_.is_native()) return;
  for (const auto& [name, value] : static_cast<const SlabText&>(text).slab().values()) {
    bind_input(("past." + name).c_str(), value.get());
    if (!new_rows_) bind_output(("present." + name).c_str(), value.get());
  }
}

void BoundStep::check_results(int64_t position) const {
  const int64_t num_results = num_outputs_ * num_ranks_;
  for (int64_t i = 0; i < num_results; ++i) {
    const int64_t id = top_ids_[i];
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
  if (!std::all_of(top_logits_, top_logits_ + num_results, is_finite)) fail("not numbers");
  const auto is_zero = [](float logit) { return logit == 0.0f; };
  if (std::all_of(top_logits_, top_logits_ + num_ranks_, is_zero)) {
    fail("all zero");
  }
}

}  // namespace bita
