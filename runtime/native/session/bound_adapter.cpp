#include "bound_adapter.h"

#include <algorithm>

#include "../device/value_block.h"
#include "../engine/packed_lora.h"
#include "step_host.h"

namespace bita {

namespace {

constexpr auto kWhole = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
constexpr auto kFloat32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
constexpr auto kFloat16 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;

// Copy one layer of stacked LoRA, [L, rows, columns], into an array that may have a higher rank.
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
      prefix_pages_(static_cast<size_t>(pages_for(host.capacity()))) {
  const FloatArray& masks = adapter_->mask_embeddings;
  add_value("mask_embeddings", masks.values.data(), masks.values.size() * sizeof(float),
            masks.shape, kFloat32);
  add_value("prefix_length", &prefix_length_, sizeof prefix_length_, {1}, kWhole);
  if (!host_.is_native()) {
    bind_lora();
    return;
  }
  add_value("prefix_pages", prefix_pages_.data(), prefix_pages_.size() * sizeof(int64_t),
            {static_cast<int64_t>(prefix_pages_.size())}, kWhole);
  bind_packed_lora();
  write_prefix();
}

BoundAdapter::~BoundAdapter() {
  for (int64_t i = 0; i < num_prefix_pages_; ++i) {
    host_.pool()->release(prefix_pages_[static_cast<size_t>(i)]);
  }
}

void BoundAdapter::add_value(const std::string& name, const void* data, size_t num_bytes,
                             const std::vector<int64_t>& shape, ONNXTensorElementDataType type) {
  Device& device = host_.device();
  // ONNX Runtime's API takes inputs as writable memory, but does not write to them
  void* place = const_cast<void*>(data);
  if (!device.is_host() && num_bytes) {
    copies_.push_back(std::make_unique<DeviceMemory>(device, num_bytes));
    place = copies_.back()->address();
    device.copy(place, data, num_bytes);
    device.wait();
  }
  values_[name] = device.tensor(place, num_bytes, shape, type);
}

// Bind one array for each layer and site: zeros if the adapter has no LoRA, or a lower rank than a
// fixed one.
void BoundAdapter::bind_lora() {
  for (const auto& [name, value] : host_.graph().inputs()) {
    if (name.rfind("lora.", 0) != 0) continue;
    const size_t layer_end = name.find('.', 5), site_end = name.find('.', layer_end + 1);
    const int64_t layer = std::stoll(name.substr(5, layer_end - 5));
    std::string own_name = "lora_";
    own_name.append(name, layer_end + 1, site_end - layer_end - 1).append("_");
    own_name.append(name, site_end + 1);
    const auto found = adapter_->lora.find(own_name);
    FloatArray array;
    array.shape = value.shape;
    for (size_t i = 0; i < 2; ++i) {
      const int64_t own = found == adapter_->lora.end() ? 1 : found->second.shape[i + 1];
      if (array.shape[i] < 0) array.shape[i] = own;
    }
    array.values.resize(static_cast<size_t>(num_elements(array.shape)));
    if (found != adapter_->lora.end())
      fill_lora(name, name.compare(site_end + 1, 4, "down") == 0, found->second, layer, array);
    const FloatArray& kept =
        host_.device().is_host() ? lora_arrays_[name] = std::move(array) : array;
    add_value(name, kept.values.data(), kept.values.size() * sizeof(float), kept.shape, kFloat32);
  }
}

// Bind all arrays in one block of memory, as in Python: threads read it sequentially.
void BoundAdapter::bind_packed_lora() {
  std::map<std::string, HalfArray> packed = packed_lora(*adapter_);
  size_t num_halves = 0;
  for (const auto& [name, array] : packed) num_halves += array.values.size();
  lora_memory_.reserve(num_halves);
  for (const auto& [name, value] : host_.graph().inputs()) {
    if (name.rfind("lora.", 0) != 0) continue;
    const auto found = packed.find(name);
    std::vector<int64_t> shape = value.shape;
    if (found == packed.end()) {  // the adapter has no LoRA
      has_mask_rows_ = false;
      for (int64_t& size : shape) size = std::max<int64_t>(size, 0);
      add_value(name, nullptr, 0, shape, kFloat16);
      if (num_elements(shape) != 0) {
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
    add_value(name, place, halves.size() * sizeof(uint16_t), found->second.shape, kFloat16);
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

}  // namespace bita
