// Kernels that work on one row at a time, written once for all ISAs. Include an ISA's Lanes first.
#pragma once

#include <algorithm>
#include <limits>

#include "kernels.h"

namespace bita {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kMin = 1e-30f;  // smaller magnitudes count as zero: 127 / x must be finite

// e to the power of x, with x clamped to [-87, 88]; accurate to 2 units in the last place. The
// polynomial is the Taylor series of e^f with coefficients fitted for |f| <= ln(2) / 2.
inline Lanes exponential(Lanes x) {
  x = Lanes::smaller(Lanes::all(88.0f), Lanes::larger(Lanes::all(-87.0f), x));
  const Lanes n = Lanes::rounded(x * Lanes::all(1.44269504088896341f));
  Lanes f = Lanes::fused(n, Lanes::all(-0.693359375f), x);
  f = Lanes::fused(n, Lanes::all(2.12194440e-4f), f);
  Lanes p = Lanes::all(1.9875691500e-4f);
  p = Lanes::fused(p, f, Lanes::all(1.3981999507e-3f));
  p = Lanes::fused(p, f, Lanes::all(8.3334519073e-3f));
  p = Lanes::fused(p, f, Lanes::all(4.1665795894e-2f));
  p = Lanes::fused(p, f, Lanes::all(1.6666665459e-1f));
  p = Lanes::fused(p, f, Lanes::all(5.0000001201e-1f));
  p = Lanes::fused(p * f, f, f) + Lanes::all(1.0f);
  return p * Lanes::power_of_two(n);
}

inline Lanes sigmoid(Lanes x) {
  return Lanes::all(1.0f) / (Lanes::all(1.0f) + exponential(Lanes::all(0.0f) - x));
}

inline Lanes silu(Lanes x) { return x / (Lanes::all(1.0f) + exponential(Lanes::all(0.0f) - x)); }

// x / 2 * (1 + tanh(u)) is x * sigmoid(2 u), with u = sqrt(2 / pi) * (x + 0.044715 x^3)
inline Lanes gelu_tanh(Lanes x) {
  const Lanes cubic = Lanes::fused(x * x * x, Lanes::all(0.044715f), x);
  return x * sigmoid(cubic * Lanes::all(1.5957691216057308f));
}

// tanh(x) is 2 * sigmoid(2 x) - 1
inline Lanes capped(Lanes x, float cap) {
  const Lanes twice = (x / Lanes::all(cap)) * Lanes::all(2.0f);
  return Lanes::all(cap) * (sigmoid(twice) * Lanes::all(2.0f) - Lanes::all(1.0f));
}

// Writes block `index` of a quantized row. A block with a non-finite value gets the scale NaN.
inline void quantize_block(Lanes a, Lanes b, int64_t index, int64_t blocks, uint8_t* row) {
  int8_t* values = reinterpret_cast<int8_t*>(row) + index * kBlock;
  float* scale = reinterpret_cast<float*>(row + blocks * 32) + index;
  float* sum = reinterpret_cast<float*>(row + blocks * 36) + index;
  int32_t* count = reinterpret_cast<int32_t*>(row + blocks * 40) + index;
  const uint32_t bits = Lanes::largest_bits(a, b);
  const float largest = float_of(bits);
  const bool is_finite = bits < 0x7f800000u;
  if (!is_finite || largest < kMin) {
    std::memset(values, 0, kBlock);
    *count = 0;
    *scale = *sum = is_finite ? 0.0f : kNaN;
    return;
  }
  const Lanes inverse = Lanes::all(127.0f / largest);
  *count = Lanes::store_int8(a * inverse, b * inverse, values);
  *scale = largest / 127.0f;
  *sum = *scale * static_cast<float>(*count);
}

inline Lanes load_at(const float* values, int64_t start, int64_t size) {
  return start + 16 <= size ? Lanes::load(values + start)
                            : Lanes::load_first(values + start, std::max<int64_t>(size - start, 0));
}

inline void store_at(Lanes lanes, float* values, int64_t start, int64_t size) {
  if (start + 16 <= size)
    lanes.store(values + start);
  else if (start < size)
    lanes.store_first(values + start, size - start);
}

void quantize(const float* values, int64_t size, uint8_t* row) {
  const int64_t blocks = num_blocks(size);
  for (int64_t block = 0; block < blocks; ++block)
    quantize_block(load_at(values, block * 32, size), load_at(values, block * 32 + 16, size), block,
                   blocks, row);
}

// 1 / sqrt(mean of squares + epsilon)
inline float inverse_norm(const float* values, int64_t size, float epsilon) {
  Lanes squares = Lanes::all(0.0f);
  for (int64_t i = 0; i < size; i += 16) {
    const Lanes x = load_at(values, i, size);
    squares = Lanes::fused(x, x, squares);
  }
  return 1.0f / std::sqrt(squares.sum() / static_cast<float>(size) + epsilon);
}

void add_norm(const float* residual, const float* delta, const float* delta_weight,
              const float* weight, float epsilon, float delta_scale, int64_t size, float* total,
              uint8_t* row) {
  const Lanes scale = Lanes::all(delta_scale);
  if (delta) {
    const Lanes inverse = Lanes::all(delta_weight ? inverse_norm(delta, size, epsilon) : 1.0f);
    for (int64_t i = 0; i < size; i += 16) {
      Lanes x = load_at(delta, i, size);
      if (delta_weight) x = (x * inverse) * load_at(delta_weight, i, size);
      store_at(load_at(residual, i, size) + x * scale, total, i, size);
    }
    residual = total;
  } else if (total) {
    std::copy(residual, residual + size, total);
  }
  if (!row) return;
  const Lanes inverse = Lanes::all(inverse_norm(residual, size, epsilon));
  const int64_t blocks = num_blocks(size);
  for (int64_t block = 0; block < blocks; ++block) {
    Lanes part[2];
    for (int64_t half = 0; half < 2; ++half) {
      const int64_t i = block * 32 + half * 16;
      part[half] = (load_at(residual, i, size) * inverse) * load_at(weight, i, size);
    }
    quantize_block(part[0], part[1], block, blocks, row);
  }
}

void gate(const float* gate_values, const float* up, bool is_gelu, int64_t count, int64_t index,
          int64_t blocks, uint8_t* row) {
  Lanes part[2];
  for (int64_t half = 0; half < 2; ++half) {
    const Lanes x = load_at(gate_values, half * 16, count);
    part[half] = (is_gelu ? gelu_tanh(x) : silu(x)) * load_at(up, half * 16, count);
  }
  quantize_block(part[0], part[1], index, blocks, row);
}

void turn(const float* head, float* out, const float* weight, float epsilon, const float* cos,
          const float* sin, int64_t half, int64_t size, float scale) {
  if (weight) {
    const Lanes inverse = Lanes::all(inverse_norm(head, size, epsilon));
    for (int64_t i = 0; i < size; i += 16)
      store_at((load_at(head, i, size) * inverse) * load_at(weight, i, size), out, i, size);
  } else {
    std::copy(head, head + size, out);
  }
  for (int64_t i = 0; cos && i < half; i += 16) {
    const Lanes x = load_at(out, i, half), y = load_at(out + half, i, half);
    const Lanes c = load_at(cos, i, half), s = load_at(sin, i, half);
    store_at(x * c - y * s, out, i, half);
    store_at(y * c + x * s, out + half, i, half);
  }
  if (scale == 1.0f) return;
  const Lanes factor = Lanes::all(scale);
  for (int64_t i = 0; i < size; i += 16) store_at(load_at(out, i, size) * factor, out, i, size);
}

void cap(float* values, int64_t size, float bound) {
  for (int64_t i = 0; i < size; i += 16)
    store_at(capped(load_at(values, i, size), bound), values, i, size);
}

inline void rank_one(float logit, int64_t id, Ranking& ranking) {
  if (logit != logit) {
    ranking.has_nan = true;
    return;
  }
  int64_t at = ranking.count;
  while (at > 0 && ranking.logits[at - 1] < logit) --at;
  if (at == ranking.size) return;
  ranking.count = std::min(ranking.count + 1, ranking.size);
  for (int64_t i = ranking.count - 1; i > at; --i) {
    ranking.logits[i] = ranking.logits[i - 1];
    ranking.ids[i] = ranking.ids[i - 1];
  }
  ranking.logits[at] = logit;
  ranking.ids[at] = id;
}

void rank(const float* logits, int64_t size, int64_t first_id, Ranking& ranking) {
  for (int64_t start = 0; start < size; start += 16) {
    const int64_t end = std::min(start + 16, size);
    if (end - start == 16 && ranking.count == ranking.size &&
        !Lanes::any_not_below(Lanes::load(logits + start), ranking.logits[ranking.size - 1]))
      continue;
    for (int64_t i = start; i < end; ++i) rank_one(logits[i], first_id + i, ranking);
  }
}

// The smallest exponential is subtracted, so that it becomes 0; this does not change any
// exponential above 1e-30.
void weigh(float* logits, int64_t size, float best, float temperature) {
  const Lanes least = exponential(Lanes::all(-87.0f));
  const Lanes largest = Lanes::all(best), divisor = Lanes::all(temperature);
  for (int64_t i = 0; i < size; i += 16) {
    const Lanes x = (load_at(logits, i, size) - largest) / divisor;
    store_at(exponential(x) - least, logits, i, size);
  }
}

void sum_blocks(const float* values, int64_t size, float* sums) {
  for (int64_t start = 0; start < size; start += kSumBlock) {
    const int64_t end = std::min(start + kSumBlock, size);
    Lanes sum = Lanes::all(0.0f);
    for (int64_t i = start; i < end; i += 16) sum = sum + load_at(values, i, end);
    sums[start / kSumBlock] = sum.sum();
  }
}

}  // namespace
}  // namespace bita
