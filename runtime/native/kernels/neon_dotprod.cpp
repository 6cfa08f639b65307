// Kernels for NEON with dot product: Armv8.2 processors, such as Cortex-A76 and A78.
#include <cmath>

#include "lanes_neon.h"
//
#include "attention_kernels.h"
#include "neon_dot.h"
#include "neon_tiles.h"
#include "thin_kernels.h"

namespace bita {
namespace {

template <int R, int Bits, bool HasMinima, int Q>
void part_rows(const TileTask& task, int first) {
  dot_rows<R, Bits, HasMinima, Q>(task, first);
}

}  // namespace

const Kernels kNeonDotprodKernels = {
    "neon-dotprod", linear, add_norm, quantize, gate, turn, write_key, write_value, attend,
    merge,          mean,   thin_in,  thin_out, cap,  rank, weigh,     sum_blocks};

}  // namespace bita
