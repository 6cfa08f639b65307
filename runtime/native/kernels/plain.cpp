// Portable kernels in C++ for any processor, which are the reference for all others.
#include "lanes_plain.h"
//
#include "attention_kernels.h"
#include "linear_plain.h"
#include "thin_kernels.h"

namespace bita {

const Kernels kPlainKernels = {"plain",   linear,      add_norm, quantize, gate,      turn,
                               write_key, write_value, attend,   merge,    mean,      thin_in,
                               thin_out,  cap,         rank,     weigh,    sum_blocks};

}  // namespace bita
