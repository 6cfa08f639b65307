// What the operators ask of a processor: one table of functions for each road.
//
// A road is one way to compute the same bits: products of 8-bit numbers are sums of integers, and
// every operation on floats is written in one order, which is that of the plain road.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bita {

constexpr int64_t kBlock = 32;  // inputs that share a scale
constexpr int64_t kTile = 16;   // outputs that lie side by side
constexpr int64_t kPage = 16;   // cache slots of a page
constexpr int64_t kChunk = 64;  // positions whose values are added up before they are merged
constexpr int64_t kGroup = 32;  // outputs of the gate, then of up, in the weights of GatedLinear
constexpr int64_t kMaxQueries = 12;

constexpr int64_t num_blocks(int64_t size) { return (size + kBlock - 1) / kBlock; }
constexpr int64_t num_tiles(int64_t size) { return (size + kTile - 1) / kTile; }

// A row of activations: `blocks` times 32 int8 values, then a float scale for each block, then
// scale * (sum of the values) as float, then the sum as int32.
constexpr int64_t row_bytes(int64_t blocks) { return blocks * 44; }

inline const float* row_scales(const uint8_t* row, int64_t blocks) {
  return reinterpret_cast<const float*>(row + blocks * 32);
}
inline const float* row_sums(const uint8_t* row, int64_t blocks) {
  return reinterpret_cast<const float*>(row + blocks * 36);
}
inline const int32_t* row_counts(const uint8_t* row, int64_t blocks) {
  return reinterpret_cast<const int32_t*>(row + blocks * 40);
}

// Weights [outputs, inputs] in tiles; see docs/native.md for the picture. minima: may be null.
struct Weights {
  const uint8_t* values;
  const uint16_t* scales;
  const uint16_t* minima;
  int64_t inputs;
  int64_t outputs;
  int bits;  // 4 or 8

  int64_t blocks() const { return num_blocks(inputs); }
  int64_t tiles() const { return num_tiles(outputs); }
  int64_t block_bytes() const { return bits == 4 ? 256 : 512; }
};

// Products of quantized rows with tiles [first, last) of the weights. Output n of row r goes to
// out[r * out_stride + n - 16 * first].
struct LinearTask {
  const Weights* weights;
  const uint8_t* rows;
  int64_t num_rows;
  float* out;
  int64_t out_stride;
};

// LoRA of some rows, in two steps. down: [r, 32 * blocks], float16; thin: [rows, r].
struct ThinInTask {
  const uint8_t* rows;  // quantized
  int64_t num_rows;
  int64_t blocks;
  const uint16_t* down;
  int64_t rank;
  float* thin;
};

// up: a tile of 16 outputs is [r][16], float16. out: `columns` outputs of a row, from the first of
// that tile on; those of the next row are `out_stride` later.
struct ThinOutTask {
  const float* thin;  // [num_rows, rank]
  int64_t num_rows;
  int64_t rank;
  const uint16_t* up;
  int64_t columns;
  float* out;
  int64_t out_stride;
};

// Queries of one key-value head that read the same slots, in one chunk of positions.
//
// Each query has a list of keys by position: the slots [0, shared) of the text, which all queries
// of the task read, then further slots of its own (`tails`). The chunk takes positions
// [begin, begin + kChunk) of it.
struct ChunkTask {
  int64_t head_dim;
  int64_t num_queries;          // 1 to kMaxQueries
  const float* queries;         // [num_queries, head_dim], scaled
  const void* const* pages;     // of the text: keys [D][16], then values [16][D], of this head
  int64_t begin;                // a multiple of kChunk
  int64_t shared;               // text slots that all queries see
  const int64_t* first;         // [num_queries] position of the first key, by its window
  const int64_t* stop;          // [num_queries] number of keys of the list
  const int32_t* const* tails;  // [num_queries] slots of the positions from `shared` on
  float softcap;                // 0 for none
  bool is_half;                 // type of the cache: float16, else float32
  float* maxima;                // [num_queries] largest score of the chunk; outputs
  float* sums;                  // [num_queries] sum of exponentials
  float* values;                // [num_queries, head_dim] values, weighted by exponentials
  const void* const* next;      // pages that will be read next, which are fetched meanwhile
  int64_t num_next;             // 0 to kChunk / kPage
};

// Attention of one query to some of its keys.
struct Partial {
  float* maximum;  // largest score
  float* sum;      // of exponentials of the scores less the largest; 0 for no key
  float* values;   // [head_dim] values, weighted by these
};

constexpr int64_t kSumBlock = 256;  // weights that are summed before a draw looks closer

// The best logits of a row so far, best first; of equal ones the lower id.
struct Ranking {
  float* logits;
  int64_t* ids;
  int64_t size;   // k
  int64_t count;  // so far
  bool has_nan;
};

struct Kernels {
  const char* name;
  void (*linear)(const LinearTask& task, int64_t first, int64_t last);
  // total = residual + scale * delta (where there is a delta), then RMS norm, then quantized.
  // delta_weight: may be null; else delta is normed first. total, row: may be null.
  void (*add_norm)(const float* residual, const float* delta, const float* delta_weight,
                   const float* weight, float epsilon, float delta_scale, int64_t size,
                   float* total, uint8_t* row);
  void (*quantize)(const float* values, int64_t size, uint8_t* row);
  // Block `index` of a quantized row of `blocks`: activation(gate) * up, 32 of each.
  void (*gate)(const float* gate, const float* up, bool is_gelu, int64_t count, int64_t index,
               int64_t blocks, uint8_t* row);
  // RMS norm (weight may be null for none), then rotary embedding (cos may be null), then * scale.
  void (*turn)(const float* head, float* out, const float* weight, float epsilon, const float* cos,
               const float* sin, int64_t half, int64_t size, float scale);
  // The key of one head, or its value, into a slot of a page.
  void (*write_key)(const float* key, int64_t size, int64_t slot, bool is_half, void* page);
  void (*write_value)(const float* value, int64_t size, int64_t slot, bool is_half, void* page);
  void (*attend)(const ChunkTask& task);
  // Add a chunk of a query to those before it; a total of the sum 0 has none yet.
  void (*merge)(const Partial& chunk, int64_t size, const Partial& total);
  // The weighted mean of the values, [size], of `count` chunks of a query, merged in their order.
  // stride: partials from one of its chunks to the next.
  void (*mean)(const Partial& chunks, int64_t stride, int64_t count, int64_t size, float* out);
  // Columns [first, last) of rows @ down; and thin @ up, which is added to `out`.
  void (*thin_in)(const ThinInTask& task, int64_t first, int64_t last);
  void (*thin_out)(const ThinOutTask& task);
  // cap * tanh(x / cap)
  void (*cap)(float* values, int64_t size, float cap);
  // Rank logits of ids from `first_id` on.
  void (*rank)(const float* logits, int64_t size, int64_t first_id, Ranking& ranking);
  // Logits to e^((logit - best) / temperature), 0 for what is below e^-87.
  void (*weigh)(float* logits, int64_t size, float best, float temperature);
  // The sums of kSumBlock numbers each, and of what is left.
  void (*sum_blocks)(const float* values, int64_t size, float* sums);
};

// The roads that were compiled in; null where they were not.
extern const Kernels kPlainKernels;
#ifdef BITA_HAS_AVX2
extern const Kernels kAvx2Kernels;
#endif
#ifdef BITA_HAS_AVX_VNNI
extern const Kernels kAvxVnniKernels;
#endif
#ifdef BITA_HAS_AVX512_VNNI
extern const Kernels kAvx512VnniKernels;
#endif
#ifdef BITA_HAS_NEON
extern const Kernels kNeonKernels;
#endif
#ifdef BITA_HAS_NEON_DOTPROD
extern const Kernels kNeonDotprodKernels;
#endif
#ifdef BITA_HAS_NEON_I8MM
extern const Kernels kNeonI8mmKernels;
#endif

}  // namespace bita
