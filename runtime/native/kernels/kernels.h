// The interface between operators and processors: one table of functions for each instruction set
// (ISA).
//
// All ISAs compute the same bits: products of 8-bit numbers are sums of integers, and every
// floating-point operation is written in one order, which is that of the portable kernels
// ("plain").
#pragma once

#include <cstddef>
#include <cstdint>

namespace bita {

constexpr int64_t kBlock = 32;  // inputs that share a scale
constexpr int64_t kTile = 16;   // outputs that are stored next to each other
constexpr int64_t kPage = 16;   // cache slots in a page
constexpr int64_t kChunk = 64;  // positions whose values are summed before they are merged
constexpr int64_t kGroup = 32;  // outputs of the gate, then of up, in the weights of GatedLinear
constexpr int64_t kMaxQueries = 12;

constexpr int64_t num_blocks(int64_t size) { return (size + kBlock - 1) / kBlock; }
constexpr int64_t num_tiles(int64_t size) { return (size + kTile - 1) / kTile; }

// A quantized row of activations: `blocks` times 32 int8 values, then a float scale for each block,
// then scale * (sum of the values) as float, then the sum as int32.
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

// Weights [outputs, inputs] in tiles; docs/native.md shows the layout. `minima` may be null.
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

// LoRA on several rows, in two steps. down: [r, 32 * blocks], float16; thin: [rows, r].
struct ThinInTask {
  const uint8_t* rows;  // quantized
  int64_t num_rows;
  int64_t blocks;
  const uint16_t* down;
  int64_t rank;
  float* thin;
};

// up: a tile of 16 outputs is [r][16], float16. out: `columns` outputs of a row, starting with the
// first of that tile; the next row starts `out_stride` later.
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
// Each query has a list of keys in the order of positions: the slots [0, shared) of the text, which
// all queries of the task read, followed by slots of its own (`tails`). The chunk covers positions
// [begin, begin + kChunk) of that list.
struct ChunkTask {
  int64_t head_dim;
  int64_t num_queries;          // 1 to kMaxQueries
  const float* queries;         // [num_queries, head_dim], scaled
  const void* const* pages;     // of the text: keys [D][16], then values [16][D], for this head
  int64_t begin;                // a multiple of kChunk
  int64_t shared;               // text slots that all queries see
  const int64_t* first;         // [num_queries] position of the first key inside the window
  const int64_t* stop;          // [num_queries] length of the list of keys
  const int32_t* const* tails;  // [num_queries] slots of the positions starting at `shared`
  float softcap;                // 0 for none
  bool is_half;                 // whether the cache is float16; otherwise float32
  float* maxima;                // output: [num_queries] largest score of the chunk
  float* sums;                  // output: [num_queries] sum of exponentials
  float* values;                // output: [num_queries, head_dim] values weighted by exponentials
  const void* const* next;      // pages that will be read next, to prefetch
  int64_t num_next;             // 0 to kChunk / kPage
};

// Attention of one query to some of its keys.
struct Partial {
  float* maximum;  // largest score
  float* sum;      // of exp(score - largest score); 0 without a key
  float* values;   // [head_dim] values weighted by those exponentials
};

constexpr int64_t kSumBlock = 256;  // weights that are summed as one before a draw examines each

// The best logits of a row so far, best first; of equal logits the lower id comes first.
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
  // total = residual + scale * delta (if there is a delta), followed by RMS norm and quantization.
  // delta_weight may be null; otherwise delta is normalized first. total and row may be null.
  void (*add_norm)(const float* residual, const float* delta, const float* delta_weight,
                   const float* weight, float epsilon, float delta_scale, int64_t size,
                   float* total, uint8_t* row);
  void (*quantize)(const float* values, int64_t size, uint8_t* row);
  // Block `index` of a quantized row of `blocks`: activation(gate) * up, 32 of each.
  void (*gate)(const float* gate, const float* up, bool is_gelu, int64_t count, int64_t index,
               int64_t blocks, uint8_t* row);
  // RMS norm (skipped if weight is null), then rotary embedding (skipped if cos is null), then *
  // scale.
  void (*turn)(const float* head, float* out, const float* weight, float epsilon, const float* cos,
               const float* sin, int64_t half, int64_t size, float scale);
  // Write the key or the value of one head into a slot of a page.
  void (*write_key)(const float* key, int64_t size, int64_t slot, bool is_half, void* page);
  void (*write_value)(const float* value, int64_t size, int64_t slot, bool is_half, void* page);
  void (*attend)(const ChunkTask& task);
  // Add a chunk of a query to the chunks before it. A total whose sum is 0 is empty.
  void (*merge)(const Partial& chunk, int64_t size, const Partial& total);
  // The weighted mean of the values, [size], of `count` chunks of a query, merged in ascending
  // order. stride: distance from one of its chunks to the next, in partials.
  void (*mean)(const Partial& chunks, int64_t stride, int64_t count, int64_t size, float* out);
  // thin_in computes columns [first, last) of rows @ down; thin_out adds thin @ up to `out`.
  void (*thin_in)(const ThinInTask& task, int64_t first, int64_t last);
  void (*thin_out)(const ThinOutTask& task);
  // cap * tanh(x / cap)
  void (*cap)(float* values, int64_t size, float cap);
  // Rank logits whose ids start at `first_id`.
  void (*rank)(const float* logits, int64_t size, int64_t first_id, Ranking& ranking);
  // Replace logits by e^((logit - best) / temperature), 0 for anything below e^-87.
  void (*weigh)(float* logits, int64_t size, float best, float temperature);
  // The sum of every kSumBlock numbers; the last block may be shorter.
  void (*sum_blocks)(const float* values, int64_t size, float* sums);
};

// Kernels that were compiled in.
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
