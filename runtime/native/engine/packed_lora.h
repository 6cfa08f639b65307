// LoRA as native operators read it: float16, for each side of a site one array of all layers.
//
// down [L, r, 32 * blocks]: a row for each rank, with zeros past the last input. up [L, tiles, r,
// 16]: tiles of 16 outputs, with zeros past the last one; those of site gate_up lie as in the
// weights, 32 outputs of the gate and then 32 of up (`bita/packed_lora.py`).
#pragma once

#include <map>
#include <string>
#include <vector>

#include "adapter.h"

namespace bita {

struct HalfArray {
  std::vector<int64_t> shape;
  std::vector<uint16_t> values;
};

// Both sides of all sites by the names of the graph's inputs, lora.{site}.{side}; empty for an
// adapter without LoRA.
std::map<std::string, HalfArray> packed_lora(const Adapter& adapter);

}  // namespace bita
