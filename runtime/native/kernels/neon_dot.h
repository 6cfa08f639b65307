// Products of one row with the dot product instructions.
#pragma once

#include "neon_tiles.h"

namespace bita {
namespace {

template <int Bits>
inline int32x4_t products(const Quarter& quarter, const int8_t* inputs) {
  const int8x16_t first = vld1q_s8(inputs), second = vld1q_s8(inputs + 16);
  int32x4_t sums = vdotq_laneq_s32(vdupq_n_s32(0), quarter.groups[0], first, 0);
  sums = vdotq_laneq_s32(sums, quarter.groups[1], first, 1);
  sums = vdotq_laneq_s32(sums, quarter.groups[2], first, 2);
  sums = vdotq_laneq_s32(sums, quarter.groups[3], first, 3);
  sums = vdotq_laneq_s32(sums, quarter.groups[4], second, 0);
  sums = vdotq_laneq_s32(sums, quarter.groups[5], second, 1);
  sums = vdotq_laneq_s32(sums, quarter.groups[6], second, 2);
  return vdotq_laneq_s32(sums, quarter.groups[7], second, 3);
}

}  // namespace
}  // namespace bita
