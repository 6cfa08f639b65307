#include "head.h"

#include <algorithm>
#include <limits>

#include "../kernels/isa.h"
#include "phases.h"

namespace bita {
namespace {

constexpr int64_t kTilesAtATime = 4;
constexpr int64_t kRowsAtATime = 32;
constexpr float kNothing = -std::numeric_limits<float>::infinity();

// A ranking for each part of the vocabulary and each row.
class Rankings {
 public:
  Rankings(int64_t num_parts, int64_t num_rows, int64_t size)
      : num_parts_(num_parts),
        num_rows_(num_rows),
        size_(size),
        logits_(static_cast<size_t>(num_parts * num_rows * size)),
        ids_(logits_.size()),
        all_(static_cast<size_t>(num_parts * num_rows)) {
    for (size_t i = 0; i < all_.size(); ++i) {
      const size_t start = i * static_cast<size_t>(size);
      all_[i] = {logits_.data() + start, ids_.data() + start, size, 0, false};
    }
  }

  Ranking& at(int64_t part, int64_t row) {
    return all_[static_cast<size_t>(part * num_rows_ + row)];
  }

  // Merge the rankings of all parts. A row with NaN has NaN as its best logit.
  void merge(int64_t row, int64_t* ids, float* logits) {
    Ranking best{logits, ids, size_, 0, false};
    const Kernels& kernel = kernels();
    for (int64_t part = 0; part < num_parts_; ++part) {
      const Ranking& ranking = at(part, row);
      best.has_nan |= ranking.has_nan;
      for (int64_t i = 0; i < ranking.count; ++i)
        kernel.rank(ranking.logits + i, 1, ranking.ids[i], best);
    }
    for (int64_t i = best.count; i < size_; ++i) {
      ids[i] = 0;
      logits[i] = kNothing;
    }
    if (best.has_nan) logits[0] = std::numeric_limits<float>::quiet_NaN();
  }

 private:
  int64_t num_parts_, num_rows_, size_;
  std::vector<float> logits_;
  std::vector<int64_t> ids_;
  std::vector<Ranking> all_;
};

}  // namespace

Head::Head(const NodeInfo& info)
    : inputs_(info.size("in_features")),
      outputs_(info.size("out_features")),
      num_ranks_(info.size("num_ranks")),
      softcap_(info.real("softcap")),
      weights_(read_weights(info, 1, info.integer("bits"), inputs_, outputs_)) {
  if (num_ranks_ > outputs_) throw std::runtime_error("num_ranks is more than out_features");
}

void Head::run(const NodeRun& node) const {
  const Tensor rows = node.input(0), wants_logits = node.input(4);
  const int64_t num_rows = check_rows(rows, weights_.blocks());
  check_dims("wants_logits", wants_logits, {1});
  const bool is_wanted = wants_logits.as<uint8_t>()[0] != 0;
  int64_t* ids = node.output<int64_t>(0, {num_rows, num_ranks_});
  float* best = node.output<float>(1, {num_rows, num_ranks_});
  float* logits = node.output<float>(2, {is_wanted ? num_rows : 0, outputs_});
  if (!is_wanted) logits = nullptr;
  const Kernels& kernel = kernels();
  const int64_t stride = row_bytes(weights_.blocks()), tiles = weights_.tiles();
  const int64_t num_parts = shares_of(tiles);
  Rankings rankings(num_parts, num_rows, num_ranks_);
  const Phase multiply{
      num_parts, [&](int64_t part) {
        float some[kRowsAtATime][kTilesAtATime * kTile];
        const int64_t last_tile = tiles * (part + 1) / num_parts;
        for (int64_t tile = tiles * part / num_parts; tile < last_tile; tile += kTilesAtATime) {
          const int64_t stop = std::min(last_tile, tile + kTilesAtATime), first = tile * kTile;
          const int64_t count = std::min(outputs_, stop * kTile) - first;
          for (int64_t start = 0; start < num_rows; start += kRowsAtATime) {
            const int64_t num = std::min(kRowsAtATime, num_rows - start);
            kernel.linear({&weights_, rows.as<uint8_t>() + start * stride, num, some[0],
                           kTilesAtATime * kTile},
                          tile, stop);
            for (int64_t row = 0; row < num; ++row) {
              if (softcap_ != 0.0f) kernel.cap(some[row], count, softcap_);
              kernel.rank(some[row], count, first, rankings.at(part, start + row));
              if (logits) std::copy_n(some[row], count, logits + (start + row) * outputs_ + first);
            }
          }
        }
      }};
  run_phases(node, multiply, even_phase(num_rows, [&](int64_t first, int64_t last) {
               for (int64_t row = first; row < last; ++row)
                 rankings.merge(row, ids + row * num_ranks_, best + row * num_ranks_);
             }));
}

}  // namespace bita
