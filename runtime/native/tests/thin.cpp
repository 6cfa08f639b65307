#include "thin.h"

#include <algorithm>

#include "../kernels/numbers.h"

namespace bita::tests {
namespace {

constexpr uint16_t kHalfNaN = 0x7e00;

std::vector<float> random_halves(Random& random, int64_t count) {
  std::vector<float> all = random.reals(count, 0.3f);
  for (float& number : all) number = from_half(to_half(number));
  return all;
}

Value all_nan(const std::vector<int64_t>& dims) {
  Value made = zeros(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, dims);
  const auto count = static_cast<int64_t>(made.bytes.size() / sizeof(uint16_t));
  for (int64_t i = 0; i < count; ++i) made.set(i, kHalfNaN);
  return made;
}

}  // namespace

Value Thin::down_value() const {
  const int64_t width = num_blocks(inputs) * kBlock;
  Value made = all_nan({kThinLayers, rank, width});
  for (int64_t k = 0; k < rank; ++k)
    for (int64_t i = 0; i < width; ++i) {
      const float cell = i < inputs ? down[static_cast<size_t>(i * rank + k)] : 0.0f;
      made.set((kThinLayer * rank + k) * width + i, to_half(cell));
    }
  return made;
}

Value Thin::up_value() const {
  const int64_t half = outputs / 2, groups = (half + kGroup - 1) / kGroup;
  const int64_t tiles = is_gated ? groups * 2 * kGroup / kTile : num_tiles(outputs);
  Value made = all_nan({kThinLayers, tiles, rank, kTile});
  for (int64_t k = 0; k < rank; ++k)
    for (int64_t n = 0; n < outputs; ++n) {
      const int64_t in_half = n % std::max<int64_t>(half, 1);
      const int64_t place =
          is_gated ? in_half / kGroup * 2 * kGroup + n / half * kGroup + in_half % kGroup : n;
      made.set(((kThinLayer * tiles + place / kTile) * rank + k) * kTile + place % kTile,
               to_half(up[static_cast<size_t>(k * outputs + n)]));
    }
  return made;
}

Thin random_thin(Random& random, int64_t inputs, int64_t outputs, int64_t rank, bool is_gated) {
  return {inputs,
          outputs,
          rank,
          is_gated,
          random_halves(random, inputs * rank),
          random_halves(random, rank * outputs)};
}

}  // namespace bita::tests
