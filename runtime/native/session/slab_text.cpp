#include "slab_text.h"

#include <algorithm>
#include <cstring>

#include "../kernels/numbers.h"

namespace bita {

namespace {

// The prefix of an adapter in the layout and type of a slab, [2L, H, P, D].
template <class Cell, class Convert>
std::vector<Cell> prefix_rows(const Adapter& adapter, int64_t num_layers, Convert convert) {
  const auto& keys = adapter.prefix_keys.values;
  const auto& values = adapter.prefix_values.values;
  const auto size = static_cast<std::ptrdiff_t>(keys.size()) / num_layers;
  std::vector<Cell> rows(2 * keys.size());
  auto place = rows.begin();
  for (int64_t layer = 0; layer < num_layers; ++layer) {
    for (const auto* side : {&keys, &values}) {
      const auto first = side->begin() + layer * size;
      place = std::transform(first, first + size, place, convert);
    }
  }
  return rows;
}

}  // namespace

void SlabText::take_prefix(const Adapter& adapter) {
  if (!slab_) slab_ = pool_.take();
  if (adapter_ == &adapter) return;
  if (adapter.prefix_length() != prefix_length_) keep(0);
  prefix_length_ = adapter.prefix_length();
  adapter_ = &adapter;
  const int64_t num_layers = pool_.manifest().num_layers;
  if (slab_->type() == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16) {
    slab_->put(0, prefix_rows<uint16_t>(adapter, num_layers, to_half).data(), prefix_length_);
  } else {
    const auto same = [](float value) { return value; };
    slab_->put(0, prefix_rows<float>(adapter, num_layers, same).data(), prefix_length_);
  }
  slab_->note_written(prefix_length_);
}

void SlabText::reserve(int64_t num_slots) {
  slab_->note_written(prefix_length_ + length_ + num_slots);
}

void SlabText::write(const void* rows, int64_t num_rows) {
  slab_->write(prefix_length_ + length_, rows, num_rows);
}

void SlabText::move_slot(int64_t source, int64_t target) {
  slab_->move(prefix_length_ + source, prefix_length_ + target);
}

void SlabText::give_up() {
  keep(0);
  adapter_ = nullptr;
  pool_.give_back(std::move(slab_));
}

// The next answer writes the prefix again.
void SlabText::clear_rest() {
  adapter_ = nullptr;
  slab_->clear_around(prefix_length_, prefix_length_ + length_);
}

void SlabText::share(const CachedText& other) {
  const auto& from = static_cast<const SlabText&>(other);
  if (!from.slab_ || !from.length_) return;
  if (!slab_) slab_ = pool_.take();
  adapter_ = from.adapter_;
  prefix_length_ = from.prefix_length_;
  length_ = from.length_;
  slab_->take(*from.slab_, prefix_length_ + length_);
}

}  // namespace bita
