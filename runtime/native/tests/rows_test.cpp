// Embed, AddNorm and Head as complete operators.
#include <algorithm>
#include <cmath>
#include <limits>

#include "../operators/add_norm.h"
#include "../operators/embed.h"
#include "../operators/head.h"
#include "nodes.h"

namespace bita::tests {
namespace {

constexpr uint16_t kHalfNaN = 0x7e00;

const Adds embed("Embed gives rows of the table and of the masks, scaled", [] {
  Random random(30);
  for (const int64_t size : {1, 31, 64, 100})
    for (const int64_t vocab : {1, 17, 40})
      for (const int bits : {4, 8}) {
        const BlockWeights table = random_weights(random, vocab, size, bits, size % 2 == 0);
        const int64_t masks = vocab % 3, count = random.below(18);
        const std::vector<float> extra = random.reals(masks * size);
        std::vector<int64_t> ids = {vocab + masks - 1};
        std::vector<double> wanted;
        while (static_cast<int64_t>(ids.size()) < count) ids.push_back(random.below(vocab + masks));
        for (const int64_t id : ids)
          for (int64_t i = 0; i < size; ++i)
            wanted.push_back(1.5 * (id < vocab
                                        ? table.at(id, i)
                                        : extra[static_cast<size_t>((id - vocab) * size + i)]));
        Node node = Node::of<Embed>();
        node.set("hidden_size", size);
        node.set("vocab_size", vocab);
        node.set("scale", 1.5f);
        fix_weights(node, table);
        node.feed("mask_embeddings", floats({masks, size}, extra));
        node.feed("token_ids", ints({1, static_cast<int64_t>(ids.size())}, ids));
        expect_close(run_everywhere(node, "Embed")[0].cells<float>(), wanted, 1e-6, "Embed");
      }
});

// A node of AddNorm and its exact outputs.
struct NormCase {
  Node node = Node::of<AddNorm>();
  int64_t size, num_rows;
  std::vector<double> normed, total;  // [rows, size]
};

std::vector<double> rms_norm(const std::vector<double>& x, const std::vector<float>& weight,
                             double epsilon) {
  const size_t size = weight.size();
  std::vector<double> out(x.size());
  for (size_t start = 0; start < x.size(); start += size) {
    double squares = 0;
    for (size_t i = 0; i < size; ++i) squares += x[start + i] * x[start + i];
    const double factor = 1 / std::sqrt(squares / static_cast<double>(size) + epsilon);
    for (size_t i = 0; i < size; ++i) out[start + i] = x[start + i] * factor * weight[i];
  }
  return out;
}

NormCase norm_case(Random& random, int64_t num_rows, int64_t size, bool has_delta, bool has_norm) {
  NormCase made;
  made.size = size;
  made.num_rows = num_rows;
  const std::vector<float> residual = random.reals(num_rows * size),
                           delta = random.reals(num_rows * size);
  const std::vector<float> weight = random.reals(size), delta_weight = random.reals(size);
  const float scale = size % 2 ? 1.0f : 0.22f;
  made.total.assign(residual.begin(), residual.end());
  std::vector<double> added(delta.begin(), delta.end());
  if (has_norm) added = rms_norm(added, delta_weight, 1e-5f);
  for (size_t i = 0; has_delta && i < added.size(); ++i) made.total[i] += scale * added[i];
  made.normed = rms_norm(made.total, weight, 1e-5f);
  made.node.set("epsilon", 1e-5f);
  if (scale != 1.0f) made.node.set("delta_scale", scale);
  made.node.feed("residual", floats({num_rows, size}, residual));
  if (has_delta) made.node.feed("delta", floats({num_rows, size}, delta));
  made.node.fix("weight", floats({size}, weight));
  if (has_norm) made.node.fix("delta_weight", floats({size}, delta_weight));
  return made;
}

const Adds add_norm("AddNorm adds, normalizes and quantizes all rows or some", [] {
  Random random(31);
  for (const int64_t size : {1, 17, 32, 100, 300})
    for (const int64_t num_rows : {0, 1, 2, 17, 130})
      for (int kind = 0; kind < 6; ++kind) {
        NormCase made = norm_case(random, num_rows, size, kind > 1, kind > 3);
        made.node.is_used[1] = kind % 2 == 0;
        const std::string what = "AddNorm " + std::to_string(num_rows) + "x" + std::to_string(size);
        const std::vector<Value> all = run_everywhere(made.node, what);
        expect_quantized(all[0], made.normed, size, 1e-5, what);
        if (made.node.is_used[1]) expect_close(all[1].cells<float>(), made.total, 1e-6, what);
        std::vector<int64_t> rows;
        for (int64_t i = num_rows ? random.below(5) : 0; i > 0; --i)
          rows.push_back(random.below(num_rows));
        made.node.feed("rows", ints({static_cast<int64_t>(rows.size())}, rows));
        const std::vector<Value> some = run(made.node, {3, 1});
        expect_same_values({some[0]}, {rows_of(all[0], rows)}, what + ", some rows");
        expect_same_values({some[1]}, {all[1]}, what + ", total with some rows");
      }
});

const Adds norm_alone("AddNorm gives a row alone the same bits as among many", [] {
  Random random(32);
  NormCase made = norm_case(random, 130, 70, true, true);
  const std::vector<Value> all = run(made.node, {4, 9});
  for (const int64_t row : {0, 1, 64, 129}) {
    Node node = made.node;
    node["residual"] = rows_of(node["residual"], {row});
    node["delta"] = rows_of(node["delta"], {row});
    expect_same_values(run(node), {rows_of(all[0], {row}), rows_of(all[1], {row})}, "alone");
  }
});

// A node of Head and its logits.
struct HeadCase {
  Node node = Node::of<Head>();
  int64_t num_rows, vocab, num_ranks;
  std::vector<double> logits;
};

HeadCase head_case(Random& random, int64_t num_rows, int64_t vocab, int64_t num_ranks, int bits,
                   float softcap) {
  constexpr int64_t kInputs = 72;
  HeadCase made;
  made.num_rows = num_rows;
  made.vocab = vocab;
  made.num_ranks = num_ranks;
  const BlockWeights weights = random_weights(random, vocab, kInputs, bits, bits == 4);
  const Value rows = quantized(random.reals(num_rows * kInputs), kInputs);
  const std::vector<double> inputs = meaning(rows, kInputs);
  for (int64_t row = 0; row < num_rows; ++row)
    for (int64_t n = 0; n < vocab; ++n) {
      double sum = 0;
      for (int64_t i = 0; i < kInputs; ++i)
        sum += inputs[static_cast<size_t>(row * kInputs + i)] * weights.at(n, i);
      made.logits.push_back(softcap != 0.0f ? softcap * std::tanh(sum / softcap) : sum);
    }
  made.node.set("in_features", kInputs);
  made.node.set("out_features", vocab);
  made.node.set("num_ranks", num_ranks);
  made.node.set("softcap", softcap);
  fix_weights(made.node, weights);
  made.node.feed("quantized", rows);
  made.node.feed("wants_logits", bools({1}, {1}));
  return made;
}

// The ids of a row's largest logits, the lower id first among equals.
std::vector<int64_t> best_ids(const std::vector<float>& logits, int64_t row, int64_t vocab,
                              int64_t count) {
  std::vector<int64_t> ids(static_cast<size_t>(vocab));
  for (int64_t id = 0; id < vocab; ++id) ids[static_cast<size_t>(id)] = id;
  const float* all = logits.data() + row * vocab;
  std::sort(ids.begin(), ids.end(),
            [&](int64_t a, int64_t b) { return all[a] > all[b] || (all[a] == all[b] && a < b); });
  ids.resize(static_cast<size_t>(count));
  return ids;
}

// Expect the ranks to match the logits, which are among the outputs.
void expect_ranks(const std::vector<Value>& found, int64_t vocab, const std::string& what) {
  const int64_t num_rows = found[0].dims[0], num_ranks = found[0].dims[1];
  const std::vector<float> logits = found[2].cells<float>();
  std::vector<int64_t> ids;
  std::vector<float> best;
  for (int64_t row = 0; row < num_rows; ++row)
    for (const int64_t id : best_ids(logits, row, vocab, num_ranks)) {
      ids.push_back(id);
      best.push_back(logits[static_cast<size_t>(row * vocab + id)]);
    }
  expect_same(found[0].cells<int64_t>(), ids, what + ", ids");
  expect_same(found[1].cells<float>(), best, what + ", best logits");
}

const Adds head("Head gives logits and their ranks, with the same bits everywhere", [] {
  Random random(33);
  for (const int64_t num_rows : {0, 1, 3, 17, 70})
    for (const int64_t vocab : {1, 17, 300})
      for (const bool is_capped : {false, true}) {
        const int64_t num_ranks = std::min<int64_t>(vocab, is_capped ? vocab : 5);
        HeadCase made =
            head_case(random, num_rows, vocab, num_ranks, is_capped ? 8 : 4, is_capped ? 2.0f : 0);
        const std::string what = "Head " + std::to_string(num_rows) + "x" + std::to_string(vocab);
        const std::vector<Value> found = run_everywhere(made.node, what);
        expect_close(found[2].cells<float>(), made.logits, 1e-5, what);
        expect_ranks(found, vocab, what);
        made.node["wants_logits"] = bools({1}, {0});
        const std::vector<Value> few = run(made.node, {4, 3});
        expect_same_values({few[0], few[1]}, {found[0], found[1]}, what + " without logits");
        expect(few[2].dims == std::vector<int64_t>{0, vocab}, what + ": logits of no row");
        made.node.is_used[2] = false;
        made.node["wants_logits"] = bools({1}, {1});
        expect_same_values({run(made.node)[0]}, {found[0]}, what + ", logits are not used");
        for (int64_t row = 0; row < num_rows; row += 16) {
          made.node["quantized"] = rows_of(made.node["quantized"], {num_rows - 1});
          expect_same_values({run(made.node, {2, 1})[1]}, {rows_of(found[1], {num_rows - 1})},
                             what + ", a row alone");
          break;
        }
      }
});

const Adds equal_logits("Head takes the lower of ids with equal logits", [] {
  Random random(34);
  HeadCase made = head_case(random, 3, 200, 40, 4, 0);
  // all tiles equal the first one
  for (const char* name : {"values", "scales", "minima"}) {
    Value& all = made.node[name];
    const auto tile = static_cast<std::ptrdiff_t>(all.bytes.size()) / all.dims[0];
    for (std::ptrdiff_t i = 1; i < all.dims[0]; ++i)
      std::copy_n(all.bytes.begin(), tile, all.bytes.begin() + i * tile);
  }
  expect_ranks(run_everywhere(made.node, "equal logits"), 200, "equal logits");
});

const Adds nan_logits("Head reports NaN for a row that has one, and ranks the others", [] {
  Random random(35);
  HeadCase made = head_case(random, 3, 100, 4, 4, 0);
  Node one = made.node;
  one["scales"].set(99, kHalfNaN);  // of id 35: each tile has 3 * 16 scales
  const std::vector<Value> found = run_everywhere(one, "a weight that is NaN");
  const std::vector<Value> wanted = run(made.node);
  for (int64_t row = 0; row < 3; ++row) {
    expect(std::isnan(found[1].cells<float>()[static_cast<size_t>(row * 4)]), "the first is NaN");
    for (const int64_t id : rows_of(found[0], {row}).cells<int64_t>())
      expect(id != 35, "an id whose logit is NaN is among the best");
  }
  expect(rows_of(found[2], {1}).cells<float>()[36] == rows_of(wanted[2], {1}).cells<float>()[36],
         "a logit next to NaN");
  std::vector<float> cells(72 * 2, 0.5f);
  cells[80] = std::numeric_limits<float>::quiet_NaN();
  made.node["quantized"] = quantized(cells, 72);
  const std::vector<Value> rows = run_everywhere(made.node, "a row that is NaN");
  const float kNothing = -std::numeric_limits<float>::infinity();
  expect_same(rows_of(rows[0], {1}).cells<int64_t>(), {0, 0, 0, 0}, "ids of a row of NaN");
  expect(std::isnan(rows[1].cells<float>()[4]), "the first logit of a row of NaN");
  expect(rows[1].cells<float>()[5] == kNothing, "other logits of a row of NaN");
  expect(std::isfinite(rows[1].cells<float>()[0]), "a row next to one of NaN");
});

}  // namespace
}  // namespace bita::tests
