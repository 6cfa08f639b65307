#pragma once

#include <algorithm>

#include "lora.h"
#include "weights.h"

namespace bita {

// The inputs of both linear operators.
constexpr std::array<Port, 8> kLinearInputs = {{{"quantized", kByte},
                                                {"values", kByte},
                                                {"scales", kHalf},
                                                {"minima", kHalf, true},
                                                {"bias", kFloat, true},
                                                {"down", kFloat, true},
                                                {"up", kFloat, true},
                                                {"first_mask_row", kInt64, true}}};

// Where a node has a linear layer.
struct LinearPorts {
  size_t values = 1;          // index of that input; scales, minima, bias, down and up follow
  size_t first_mask_row = 7;  // index of that input
  const char* bits = "bits";  // name of that attribute
};

// How a linear layer is cut among threads. A step of few rows is cut by outputs, so that each
// thread reads its part of the weights. Many rows are cut by rows too, so that what a thread wrote
// of a row is in its cache when the next layer reads it.
class RowSplit {
 public:
  struct Piece {
    int64_t row, count, first, last;  // rows from `row` on; units of outputs
  };

  RowSplit(int64_t num_rows, int64_t units)
      : num_rows_(num_rows),
        units_(units),
        group_rows_(num_rows < 2 * kRowGroup ? std::max<int64_t>(num_rows, 1) : kRowGroup),
        slices_(num_rows < 2 * kRowGroup ? shares_of(units) : std::min(units, kSlices)) {}

  int64_t pieces() const { return (num_rows_ + group_rows_ - 1) / group_rows_ * slices_; }
  Piece at(int64_t i) const {
    const int64_t row = i / slices_ * group_rows_, slice = i % slices_;
    return {row, std::min(group_rows_, num_rows_ - row), units_ * slice / slices_,
            units_ * (slice + 1) / slices_};
  }

 private:
  static constexpr int64_t kRowGroup = 64;  // rows that one thread takes of many
  static constexpr int64_t kSlices = 8;     // of the outputs, of a group of rows

  int64_t num_rows_, units_, group_rows_, slices_;
};

// Quantized rows times weights [N, K], with a bias and LoRA.
class Linear {
 public:
  static constexpr const char* kName = "Linear";
  static constexpr auto kInputs = kLinearInputs;
  static constexpr std::array<Port, 1> kOutputs = {{{"product", kFloat}}};

  explicit Linear(const NodeInfo& info)
      : Linear(info, {}, info.size("in_features"), info.size("out_features")) {}
  Linear(const NodeInfo& info, const LinearPorts& ports, int64_t inputs, int64_t outputs);
  void run(const NodeRun& node) const;

  int64_t row_bytes() const { return bita::row_bytes(weights_.blocks()); }

  // The node's LoRA; its phases come before the layer's.
  Lora lora(const NodeRun& node, int64_t num_rows) const {
    return {node, ports_.values + 4, ports_.first_mask_row, inputs_, outputs_, num_rows};
  }

  // The products of rows, to out [num_rows, N]. then(row, first, last, outputs) is called with the
  // outputs [first, last) of a row, by the thread that computed them; a unit of `unit` outputs, a
  // multiple of 16, is never cut.
  template <class Then>
  auto phase(const uint8_t* rows, int64_t num_rows, int64_t unit, float* out, const Lora& lora,
             const Then& then) const {
    const RowSplit split(num_rows, (outputs_ + unit - 1) / unit);
    return Phase{split.pieces(), [=, this_lora = &lora](int64_t i) {
                   const RowSplit::Piece piece = split.at(i);
                   const int64_t first = piece.first * unit;
                   const int64_t last = std::min(outputs_, piece.last * unit);
                   multiply(rows, piece.row, piece.count, first, last, *this_lora, out);
                   for (int64_t row = piece.row; row < piece.row + piece.count; ++row)
                     then(row, first, last, out + row * outputs_ + first);
                 }};
  }

 private:
  void multiply(const uint8_t* rows, int64_t row, int64_t count, int64_t first, int64_t last,
                const Lora& lora, float* out) const;

  LinearPorts ports_;
  int64_t inputs_, outputs_;
  KernelWeights weights_;
  const float* bias_;
};

// activation(gate) * up, quantized. Groups of 32 outputs of the gate and the same of up lie side by
// side in the weights, so that one thread has both.
class GatedLinear {
 public:
  static constexpr const char* kName = "GatedLinear";
  static constexpr auto kInputs = kLinearInputs;
  static constexpr std::array<Port, 1> kOutputs = {{{"quantized", kByte}}};

  explicit GatedLinear(const NodeInfo& info)
      : GatedLinear(info, {}, info.size("in_features"), info.size("out_features")) {}
  GatedLinear(const NodeInfo& info, const LinearPorts& ports, int64_t inputs, int64_t outputs);
  void run(const NodeRun& node) const;

  // Of a row that it gives.
  int64_t row_bytes() const { return bita::row_bytes(num_blocks(outputs_)); }

  Lora lora(const NodeRun& node, int64_t num_rows) const {
    return {node, ports_.values + 4, ports_.first_mask_row, inputs_, 2 * outputs_, num_rows};
  }

  // Quantized rows, to out.
  auto phase(const uint8_t* rows, int64_t num_rows, uint8_t* out, const Lora& lora) const {
    const RowSplit split(num_rows, groups_);
    return Phase{split.pieces(), [=, this_lora = &lora](int64_t i) {
                   const RowSplit::Piece piece = split.at(i);
                   run_groups(rows, piece, *this_lora, out);
                 }};
  }

 private:
  void run_groups(const uint8_t* rows, const RowSplit::Piece& piece, const Lora& lora,
                  uint8_t* out) const;
  // 32 outputs of some rows.
  void run_group(const uint8_t* rows, int64_t first_row, int64_t num_rows, int64_t group,
                 const Lora& lora, uint8_t* out) const;

  LinearPorts ports_;
  int64_t inputs_, outputs_, groups_;
  bool is_gelu_;
  KernelWeights weights_;
  const float* bias_;
};

}  // namespace bita
