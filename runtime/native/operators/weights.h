// Blocks of weights stored in initializers of a node.
#pragma once

#include "../kernels/kernels.h"
#include "ort.h"
#include "weight_memory.h"

namespace bita {

// Read values, scales and minima (inputs `first` to `first + 2`) of weights [outputs, inputs].
// bits: an attribute of the node; 4 or 8. Raises std::runtime_error if their shapes do not match
// the layout; the ports ensure their types.
Weights read_weights(const NodeInfo& info, size_t first, int64_t bits, int64_t inputs,
                     int64_t outputs);

// A vector of floats; null if the input is absent. Raises std::runtime_error.
const float* read_vector(const NodeInfo& info, size_t index, int64_t size);

// The number of rows of a tensor [Q, row_bytes(blocks)], whose shape it checks.
int64_t check_rows(const Tensor& rows, int64_t blocks);

}  // namespace bita
