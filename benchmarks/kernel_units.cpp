// Loops over units of the work of a step's kernels. Each is a separate function, so that its
// assembly can be found by name and its time can be measured. benchmarks/cycle_model.py compiles
// this file with the options of an ISA, whose kernels are in BITA_ISA_FILE.
#include BITA_ISA_FILE

#define CALLED extern "C" __attribute__((visibility("default"))) void
#define UNIT extern "C" __attribute__((visibility("default"), flatten)) void

namespace bita {

// Activates blocks of a row: 32 values of the gate and 32 of up.
UNIT unit_gate(const float* values, int64_t blocks, uint8_t* row) {
  for (int64_t block = 0; block < blocks; ++block)
    gate(values + block * 64, values + block * 64 + 32, false, kBlock, block, blocks, row);
}

UNIT unit_quantize(const float* values, int64_t blocks, uint8_t* row) {
  for (int64_t block = 0; block < blocks; ++block)
    quantize_block(Lanes::load(values + block * 32), Lanes::load(values + block * 32 + 16), block,
                   blocks, row);
}

// Normalizes and quantizes blocks of a row, without its sum of squares.
UNIT unit_scale(const float* values, int64_t blocks, uint8_t* row) {
  const Lanes inverse = Lanes::all(values[0]);
  for (int64_t block = 0; block < blocks; ++block) {
    const float* x = values + block * 32;
    const Lanes low = (Lanes::load(x) * inverse) * Lanes::load(x + 1024);
    const Lanes high = (Lanes::load(x + 16) * inverse) * Lanes::load(x + 1040);
    quantize_block(low, high, block, blocks, row);
  }
}

// Adds sixteen values to a sum of squares at a time.
UNIT unit_squares(const float* values, int64_t count, float* out) {
  Lanes squares = Lanes::all(0.0f);
  for (int64_t i = 0; i < count; ++i) {
    const Lanes x = Lanes::load(values + i * 16);
    squares = Lanes::fused(x, x, squares);
  }
  squares.store(out);
}

// Adds sixteen values of a residual sum at a time.
UNIT unit_add(const float* values, int64_t count, float* out) {
  const Lanes scale = Lanes::all(values[0]);
  for (int64_t i = 0; i < count; ++i)
    (Lanes::load(out + i * 16) + Lanes::load(values + i * 16) * scale).store(out + i * 16);
}

// Rotates sixteen pairs of a head at a time.
UNIT unit_turn(const float* values, int64_t count, float* out) {
  for (int64_t i = 0; i < count * 16; i += 16) {
    const Lanes x = Lanes::load(out + i), y = Lanes::load(out + 1024 + i);
    const Lanes c = Lanes::load(values + i), s = Lanes::load(values + 1024 + i);
    (x * c - y * s).store(out + i);
    (y * c + x * s).store(out + 1024 + i);
  }
}

// Converts sixteen scores of a query to exponentials at a time.
UNIT unit_weigh(const float* values, int64_t count, float* out) {
  Lanes sums = Lanes::all(0.0f);
  const Lanes largest = Lanes::all(values[0]);
  for (int64_t i = 0; i < count * 16; i += 16) {
    const Lanes share = Lanes::within(exponential(Lanes::load(values + i) - largest),
                                      Lanes::all(0.0f), -i, count * 16 - i);
    share.store(out + i);
    sums = sums + share;
  }
  sums.store(out);
}

// Merges sixteen dimensions of a chunk at a time.
UNIT unit_mean(const float* values, int64_t count, float* out) {
  Lanes total = Lanes::all(0.0f);
  for (int64_t i = 0; i < count; ++i)
    total =
        total * Lanes::all(values[i]) + Lanes::load(values + i * 16) * Lanes::all(values[i + 1024]);
  total.store(out);
}

// Compares sixteen logits at a time, none of which is among the best.
UNIT unit_rank(const float* values, int64_t count, float* out) {
  int64_t above = 0;
  for (int64_t i = 0; i < count; ++i)
    above += Lanes::any_not_below(Lanes::load(values + i * 16), values[0]);
  out[0] = static_cast<float>(above);
}

// Runs a unit `times` times.
CALLED unit_repeat(void (*unit)(const float*, int64_t, void*), const float* values, int64_t count,
                   void* out, int64_t times) {
  for (int64_t i = 0; i < times; ++i) unit(values, count, out);
}

// Runs eight dependent additions `times` times; they take eight cycles.
CALLED unit_clock(int64_t times) {
  int64_t sum = 0;
  for (int64_t i = 0; i < times; ++i) {
#if defined(__x86_64__)
    asm volatile("inc %0\n\tinc %0\n\tinc %0\n\tinc %0\n\tinc %0\n\tinc %0\n\tinc %0\n\tinc %0"
                 : "+r"(sum));
#elif defined(__aarch64__)
    asm volatile(
        "add %0, %0, 1\n\tadd %0, %0, 1\n\tadd %0, %0, 1\n\tadd %0, %0, 1\n\t"
        "add %0, %0, 1\n\tadd %0, %0, 1\n\tadd %0, %0, 1\n\tadd %0, %0, 1"
        : "+r"(sum));
#endif
  }
}

// Multiplies tiles of a linear layer. The weights are contiguous: values, then scales, then minima.
CALLED unit_linear(const uint8_t* weights, int64_t tiles, int64_t blocks, int64_t bits,
                   int64_t has_minima, const uint8_t* rows, int64_t num_rows, float* out,
                   int64_t times) {
  const uint16_t* scales =
      reinterpret_cast<const uint16_t*>(weights + tiles * blocks * (bits == 4 ? 256 : 512));
  const uint16_t* minima = has_minima ? scales + tiles * blocks * kTile : nullptr;
  const Weights all{weights,         scales,        minima,
                    blocks * kBlock, tiles * kTile, static_cast<int>(bits)};
  for (int64_t i = 0; i < times; ++i) linear({&all, rows, num_rows, out, tiles * kTile}, 0, tiles);
}

// Computes attention of queries to `slots` positions in pages of one head, in float16 or float32.
CALLED unit_attend(const void* const* pages, int64_t slots, int64_t head_dim, int64_t num_queries,
                   int64_t is_half, const float* queries, float* out, int64_t times) {
  int64_t first[kMaxQueries] = {}, stop[kMaxQueries];
  const int32_t* tails[kMaxQueries] = {};
  std::fill_n(stop, kMaxQueries, slots);
  ChunkTask task{};
  task.head_dim = head_dim;
  task.num_queries = num_queries;
  task.queries = queries;
  task.pages = pages;
  task.shared = slots;
  task.first = first;
  task.stop = stop;
  task.tails = tails;
  task.is_half = is_half != 0;
  task.maxima = out;
  task.sums = out + kMaxQueries;
  task.values = out + 2 * kMaxQueries;
  for (int64_t i = 0; i < times; ++i)
    for (task.begin = 0; task.begin < slots; task.begin += kChunk) attend(task);
}

}  // namespace bita
