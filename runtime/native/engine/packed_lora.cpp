#include "packed_lora.h"

#include "../kernels/numbers.h"

namespace bita {

namespace {

constexpr int64_t kBlock = 32, kTile = 16, kGroup = 32;

int64_t padded(int64_t size, int64_t unit) { return (size + unit - 1) / unit * unit; }

// Transpose [L, in, r] to [L, r, in], padded.
HalfArray pack_down(const FloatArray& down) {
  const int64_t layers = down.shape[0], inputs = down.shape[1], rank = down.shape[2];
  const int64_t width = padded(inputs, kBlock);
  HalfArray packed{{layers, rank, width},
                   std::vector<uint16_t>(static_cast<size_t>(layers * rank * width))};
  for (int64_t layer = 0; layer < layers; ++layer) {
    for (int64_t in = 0; in < inputs; ++in) {
      for (int64_t r = 0; r < rank; ++r) {
        packed.values[static_cast<size_t>((layer * rank + r) * width + in)] =
            to_half(down.values[static_cast<size_t>((layer * inputs + in) * rank + r)]);
      }
    }
  }
  return packed;
}

// The index of an output among the tiles: 32 outputs of the gate alternate with 32 of up.
int64_t placed(int64_t out, int64_t outputs, bool has_gate) {
  if (!has_gate) return out;
  const int64_t half = outputs / 2, part = out / half, in_part = out % half;
  return (in_part / kGroup * 2 + part) * kGroup + in_part % kGroup;
}

// Arrange [L, r, out] in tiles.
HalfArray pack_up(const FloatArray& up, bool has_gate) {
  const int64_t layers = up.shape[0], rank = up.shape[1], outputs = up.shape[2];
  const int64_t width = has_gate ? 2 * padded(outputs / 2, kGroup) : padded(outputs, kTile);
  const int64_t tiles = width / kTile;
  HalfArray packed{{layers, tiles, rank, kTile},
                   std::vector<uint16_t>(static_cast<size_t>(layers * width * rank))};
  for (int64_t layer = 0; layer < layers; ++layer) {
    for (int64_t r = 0; r < rank; ++r) {
      for (int64_t out = 0; out < outputs; ++out) {
        const int64_t place = placed(out, outputs, has_gate);
        const int64_t at = ((layer * tiles + place / kTile) * rank + r) * kTile + place % kTile;
        packed.values[static_cast<size_t>(at)] =
            to_half(up.values[static_cast<size_t>((layer * rank + r) * outputs + out)]);
      }
    }
  }
  return packed;
}

}  // namespace

std::map<std::string, HalfArray> packed_lora(const Adapter& adapter) {
  std::map<std::string, HalfArray> packed;
  if (adapter.lora.empty()) return packed;
  for (const char* site : kLoraSites) {
    const std::string name = site;
    packed["lora." + name + ".down"] = pack_down(adapter.lora.at("lora_" + name + "_down"));
    packed["lora." + name + ".up"] =
        pack_up(adapter.lora.at("lora_" + name + "_up"), name == "gate_up");
  }
  return packed;
}

}  // namespace bita
