// LoRA in the layout of the native operators: float16, one array of all layers for each side of a
// site.
//
// down [L, r, 32 * blocks]: one row for each rank, with zeros after the last input. up [L, tiles,
// r, 16]: tiles of 16 outputs, with zeros after the last one; the tiles of site gate_up are ordered
// like those of the weights, 32 outputs of the gate followed by 32 of up (`bita/packed_lora.py`).
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

// Both sides of all sites, by the names of the graph's inputs, lora.{site}.{side}; empty if the
// adapter has no LoRA.
std::map<std::string, HalfArray> packed_lora(const Adapter& adapter);

}  // namespace bita
