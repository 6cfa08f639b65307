#pragma once

#include <algorithm>

#include "lora.h"
#include "weights.h"

namespace bita {

constexpr int64_t kGroupTiles = 2 * kGroup / kTile;

// The inputs of both linear operators.
constexpr std::array<Port, 8> kLinearInputs = {{{"quantized", kByte},
                                                {"values", kByte},
                                                {"scales", kHalf},
                                                {"minima", kHalf, true},
                                                {"bias", kFloat, true},
                                                {"down", kHalf, true},
                                                {"up", kHalf, true},
                                                {"first_mask_row", kInt64, true}}};

// Positions of a linear layer's inputs and attributes in a node.
struct LinearPorts {
  size_t values = 1;          // index of that input; scales, minima, bias, down and up follow
  size_t first_mask_row = 7;  // index of that input
  const char* bits = "bits";  // name of that attribute
};

// Divides a linear layer among threads. A step of few rows is divided by outputs, so that each
// thread reads its part of the weights. Many rows are also divided by rows, so that what a thread
// wrote for a row is still in its cache when the next layer reads it.
class RowSplit {
 public:
  struct Piece {
    int64_t row, count, first, last;  // `count` rows from `row`; units [first, last) of outputs
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
  static constexpr int64_t kRowGroup = 64;  // rows that a thread takes at a time if there are many
  static constexpr int64_t kSlices = 8;     // parts of the outputs for each group of rows

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

  // The node's LoRA. Its phase must come directly before the layer's.
  Lora lora(const NodeRun& node, const MaskRows& masks) const {
    return {node, masks, ports_.values + 4, layer_, weights_.blocks(), weights_.tiles()};
  }

  // Write the products of rows to out [num_rows, N]. then(row, first, last, outputs) is called with
  // the outputs [first, last) of a row, by the thread that computed them; a unit of `unit` outputs,
  // a multiple of 16, is never divided.
  template <class Then>
  auto phase(const uint8_t* rows, int64_t num_rows, int64_t unit, float* out, const Lora& lora,
             const Then& then) const {
    const RowSplit split(num_rows, (outputs_ + unit - 1) / unit);
    return EarlyPhase{split.pieces(), [=, this_lora = &lora](int64_t i, const auto& await_lora) {
                        const RowSplit::Piece piece = split.at(i);
                        const int64_t first = piece.first * unit;
                        const int64_t last = std::min(outputs_, piece.last * unit);
                        float* place = out + piece.row * outputs_ + first;
                        multiply(rows, piece.row, piece.count, first, last, place);
                        await_lora();
                        this_lora->add(piece.row, piece.count, first / kTile, last - first, place,
                                       outputs_);
                        for (int64_t row = piece.row; row < piece.row + piece.count; ++row)
                          then(row, first, last, out + row * outputs_ + first);
                      }};
  }

 private:
  // Writes products plus bias to out[i * outputs + n - first].
  void multiply(const uint8_t* rows, int64_t row, int64_t count, int64_t first, int64_t last,
                float* out) const;

  LinearPorts ports_;
  int64_t outputs_, layer_;
  KernelWeights weights_;
  const float* bias_;
};

// activation(gate) * up, quantized. In the weights, each group of 32 outputs of the gate is
// followed by the same 32 of up, so that one thread computes both.
class GatedLinear {
 public:
  static constexpr const char* kName = "GatedLinear";
  static constexpr auto kInputs = kLinearInputs;
  static constexpr std::array<Port, 1> kOutputs = {{{"quantized", kByte}}};

  explicit GatedLinear(const NodeInfo& info)
      : GatedLinear(info, {}, info.size("in_features"), info.size("out_features")) {}
  GatedLinear(const NodeInfo& info, const LinearPorts& ports, int64_t inputs, int64_t outputs);
  void run(const NodeRun& node) const;

  // Size of an output row.
  int64_t row_bytes() const { return bita::row_bytes(num_blocks(outputs_)); }

  // Like Linear::lora; the tiles of `up` are grouped like those of the weights.
  Lora lora(const NodeRun& node, const MaskRows& masks) const {
    return {node, masks, ports_.values + 4, layer_, weights_.blocks(), weights_.tiles()};
  }

  // Write the quantized rows to `out`.
  auto phase(const uint8_t* rows, int64_t num_rows, uint8_t* out, const Lora& lora) const {
    const RowSplit split(num_rows, groups_);
    return EarlyPhase{split.pieces(), [=, this_lora = &lora](int64_t i, const auto& await_lora) {
                        run_groups(rows, split.at(i), *this_lora, await_lora, out);
                      }};
  }

 private:
  static constexpr int64_t kRowsAtATime = 32;  // rows whose gates a thread holds
  using Both = float[kRowsAtATime][2 * kGroup];

  template <class Await>
  void run_groups(const uint8_t* rows, const RowSplit::Piece& piece, const Lora& lora,
                  const Await& await_lora, uint8_t* out) const {
    Both both;
    for (int64_t group = piece.first; group < piece.last; ++group)
      for (int64_t start = 0; start < piece.count; start += kRowsAtATime) {
        const int64_t row = piece.row + start;
        const int64_t count = std::min(kRowsAtATime, piece.count - start);
        multiply(rows, row, count, group, both);
        await_lora();
        lora.add(row, count, group * kGroupTiles, 2 * kGroup, both[0], 2 * kGroup);
        activate(both, row, count, group, out);
      }
  }
  // Multiply some rows with a group of outputs, 32 of the gate and 32 of up.
  void multiply(const uint8_t* rows, int64_t row, int64_t count, int64_t group, Both& both) const;
  void activate(const Both& both, int64_t row, int64_t count, int64_t group, uint8_t* out) const;

  LinearPorts ports_;
  int64_t outputs_, groups_, layer_;
  bool is_gelu_;
  KernelWeights weights_;
  const float* bias_;
};

}  // namespace bita
