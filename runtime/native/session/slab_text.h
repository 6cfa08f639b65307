// A text of other operators: one slab of slots, the prefix's first, then the text's.
#pragma once

#include <onnxruntime_c_api.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "../engine/manifest.h"
#include "cached_text.h"
#include "graph_session.h"

namespace bita {

// Keys and values of all layers, [2L, H, C, D]: layer l's keys at 2l, its values at 2l + 1. They
// take memory as they are written.
class SlabText : public CachedText {
 public:
  // type: float32 or float16. Throws a Fault if there is no memory.
  SlabText(const Manifest& manifest, ONNXTensorElementDataType type);
  ~SlabText() override;

  // Each text has another number, also one that lies where an older one did.
  uint64_t number() const { return number_; }
  int64_t prefix_length() const { return prefix_length_; }
  // Have this adapter's prefix in the first slots; the text is lost where it would have to move.
  void take_prefix(const Adapter& adapter) override;
  // The caches by their names in a graph, past and present being the same.
  const std::vector<std::pair<std::string, OrtPointer<OrtValue>>>& values() const {
    return values_;
  }
  // Put the rows of a step, [2L, H, Q, D], after the text.
  void write(const void* rows, int64_t num_rows);

  void clear_rest() override;
  void share(const CachedText& other) override;

 private:
  void move_slot(int64_t source, int64_t target) override;
  uint8_t* row(int64_t side, int64_t head, int64_t slot) const;
  template <class Use>
  void each_head(Use use) const;  // of a side and a head

  const int64_t num_sides_, num_heads_, capacity_, row_bytes_;
  const ONNXTensorElementDataType type_;
  const uint64_t number_;
  uint8_t* slab_ = nullptr;
  const Adapter* adapter_ = nullptr;  // whose prefix is there
  int64_t prefix_length_ = 0;
  std::vector<std::pair<std::string, OrtPointer<OrtValue>>> values_;
};

}  // namespace bita
