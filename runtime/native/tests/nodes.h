// Helpers for tests of operators: weights and quantized rows with their values in double precision,
// and runs that must give the same bits.
#pragma once

#include "../kernels/isa.h"
#include "check.h"
#include "host.h"

namespace bita::tests {

// Weights [outputs, inputs] in blocks of 32 inputs, before they are packed into tiles.
struct BlockWeights {
  int64_t outputs, inputs;
  int bits;
  std::vector<int> values;       // [outputs, blocks * 32]
  std::vector<uint16_t> scales;  // [outputs, blocks]
  std::vector<uint16_t> minima;  // [outputs, blocks], or empty

  double at(int64_t output, int64_t input) const;
};

BlockWeights random_weights(Random& random, int64_t outputs, int64_t inputs, int bits, bool minima);

// Give a node the attribute `bits` and the initializers values, scales and minima. prefix: of their
// names.
void fix_weights(Node& node, const BlockWeights& weights, const std::string& prefix = "");

// Rows [count, size], quantized by the plain kernels.
Value quantized(const std::vector<float>& cells, int64_t size);
// The numbers that quantized rows represent, [count, size].
std::vector<double> meaning(const Value& rows, int64_t size);

// Expect quantized rows to equal `wanted` [count, size] within their own precision and an error of
// `slack`, relative to the largest number of a row, and the sums of their blocks to be right.
void expect_quantized(const Value& found, const std::vector<double>& wanted, int64_t size,
                      double slack, const std::string& what);
// Expect numbers to equal `wanted` within `slack`, relative to the largest of all.
void expect_close(const std::vector<float>& found, const std::vector<double>& wanted, double slack,
                  const std::string& what);

void expect_same_values(const std::vector<Value>& found, const std::vector<Value>& wanted,
                        const std::string& what);

// The number of processors that operators assume in tests, whatever the machine has.
constexpr int64_t kProcessors = 4;

// The outputs of a node, which must have the same bits on all ISAs, for one to four threads and for
// any number of processors: all numbers of threads on the best ISA, one on every other ISA.
std::vector<Value> run_everywhere(const Node& node, const std::string& what);

// Some rows of a tensor of rows.
Value rows_of(const Value& all, const std::vector<int64_t>& rows);
// A random order of [first, last).
std::vector<int64_t> random_order(Random& random, int64_t first, int64_t last);

}  // namespace bita::tests
