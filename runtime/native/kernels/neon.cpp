// Kernels for NEON without dot product: the first Armv8 processors, such as Cortex-A72.
#include <cmath>

#include "lanes_neon.h"
//
#include "attention_kernels.h"
#include "neon_tiles.h"
#include "thin_kernels.h"

namespace bita {
namespace {

// Products of the four inputs of each output, as the processor multiplies them: two registers of 16
// bits.
struct Fours {
  int16x8_t low, high;

  // inputs: four values, repeated four times.
  static Fours of(int8x16_t weights, int8x16_t inputs) {
    return {vmull_s8(vget_low_s8(weights), vget_low_s8(inputs)), vmull_high_s8(weights, inputs)};
  }
  void add(int8x16_t weights, int8x16_t inputs) {
    low = vmlal_s8(low, vget_low_s8(weights), vget_low_s8(inputs));
    high = vmlal_high_s8(high, weights, inputs);
  }
  int32x4_t sums() const { return vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)); }
};

inline int8x16_t four_times(const int8_t* inputs) {
  return vreinterpretq_s8_s32(vdupq_n_s32(four_values(inputs)));
}

// The products of a whole block of 4-bit values fit in 16 bits, 8 * 15 * 127 = 15240; for 8-bit
// values those of two groups do, 2 * 128 * 127 = 32512.
template <int Bits>
inline int32x4_t products(const Quarter& quarter, const int8_t* inputs) {
  constexpr int kTogether = Bits == 4 ? 8 : 2;
  int32x4_t total = vdupq_n_s32(0);
  for (int start = 0; start < 8; start += kTogether) {
    Fours fours = Fours::of(quarter.groups[start], four_times(inputs + 4 * start));
    for (int group = start + 1; group < start + kTogether; ++group)
      fours.add(quarter.groups[group], four_times(inputs + 4 * group));
    total = vaddq_s32(total, fours.sums());
  }
  return total;
}

template <int R, int Bits, bool HasMinima, int Q>
void part_rows(const TileTask& task, int first) {
  dot_rows<R, Bits, HasMinima, Q>(task, first);
}

}  // namespace

const Kernels kNeonKernels = {"neon",    linear,      add_norm, quantize, gate,      turn,
                              write_key, write_value, attend,   merge,    mean,      thin_in,
                              thin_out,  cap,         rank,     weigh,    sum_blocks};

}  // namespace bita
