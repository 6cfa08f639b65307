// Every ISA gives the bits of the plain kernels.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "../kernels/numbers.h"
#include "on_all_isas.h"

namespace bita::tests {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct OwnWeights {
  std::vector<uint8_t> values;
  std::vector<uint16_t> scales, minima;
  Weights view;
};

OwnWeights random_weights(Random& random, int64_t outputs, int64_t inputs, int bits, bool minima) {
  OwnWeights own;
  own.view = {nullptr, nullptr, nullptr, inputs, outputs, bits};
  const int64_t blocks = own.view.tiles() * own.view.blocks();
  own.values.resize(static_cast<size_t>(blocks * own.view.block_bytes()));
  for (uint8_t& value : own.values) value = static_cast<uint8_t>(random.below(256));
  own.scales.resize(static_cast<size_t>(blocks * kTile));
  for (uint16_t& scale : own.scales) scale = to_half(random.real(0.1f));
  own.minima.resize(own.scales.size());
  for (uint16_t& minimum : own.minima) minimum = to_half(random.real(0.5f));
  own.view.values = own.values.data();
  own.view.scales = own.scales.data();
  own.view.minima = minima ? own.minima.data() : nullptr;
  return own;
}

std::vector<uint8_t> random_rows(Random& random, int64_t num_rows, int64_t inputs) {
  const int64_t bytes = row_bytes(num_blocks(inputs));
  std::vector<uint8_t> rows(static_cast<size_t>(num_rows * bytes));
  for (int64_t row = 0; row < num_rows; ++row)
    kPlainKernels.quantize(random.reals(inputs, 3.0f).data(), inputs, rows.data() + row * bytes);
  return rows;
}

std::vector<float> product(const Kernels& isa, const Weights& weights,
                           const std::vector<uint8_t>& rows, int64_t num_rows) {
  std::vector<float> out(static_cast<size_t>(num_rows * weights.outputs));
  for (int64_t tile = 0; tile < weights.tiles(); ++tile)
    isa.linear({&weights, rows.data(), num_rows, out.data() + tile * kTile, weights.outputs}, tile,
               tile + 1);
  return out;
}

const Adds linear_isas("linear on all ISAs", [] {
  Random random(1);
  for (int64_t inputs : {1, 31, 32, 33, 100, 200})
    for (int64_t outputs : {1, 15, 16, 17, 50})
      for (int bits : {4, 8})
        for (bool minima : {false, true})
          for (int64_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 17}) {
            const OwnWeights own = random_weights(random, outputs, inputs, bits, minima);
            const auto activations = random_rows(random, rows, inputs);
            on_all_isas(
                "linear " + std::to_string(outputs) + "x" + std::to_string(inputs) + ", " +
                    std::to_string(bits) + " bits, " + std::to_string(rows) + " rows",
                [&](const Kernels& isa) { return product(isa, own.view, activations, rows); });
          }
});

const Adds linear_rows("a row's product does not depend on other rows", [] {
  Random random(2);
  const OwnWeights own = random_weights(random, 40, 96, 4, true);
  const int64_t bytes = row_bytes(3);
  const auto rows = random_rows(random, 17, 96);
  for (const Kernels* isa : isas()) {
    const auto all = product(*isa, own.view, rows, 17);
    for (int64_t row = 0; row < 17; ++row) {
      const std::vector<uint8_t> alone(rows.begin() + row * bytes,
                                       rows.begin() + (row + 1) * bytes);
      const std::vector<float> wanted(all.begin() + row * 40, all.begin() + (row + 1) * 40);
      expect_same(product(*isa, own.view, alone, 1), wanted, std::string("alone on ") + isa->name);
    }
  }
});

const Adds extreme_values("8-bit weights of -128 and inputs of 127 do not overflow", [] {
  Random random(3);
  OwnWeights own = random_weights(random, 16, 64, 8, false);
  std::fill(own.values.begin(), own.values.end(), uint8_t{0x80});
  std::vector<float> inputs(64, -5.0f);
  for (int64_t i = 0; i < 32; ++i) inputs[static_cast<size_t>(i)] = 5.0f;
  std::vector<uint8_t> row(static_cast<size_t>(row_bytes(2)));
  kPlainKernels.quantize(inputs.data(), 64, row.data());
  on_all_isas("extreme values", [&](const Kernels& isa) { return product(isa, own.view, row, 1); });
  const float wanted = from_half(own.scales[0]) * -128.0f * 5.0f * 32.0f -
                       from_half(own.scales[16]) * -128.0f * 5.0f * 32.0f;
  const float found = product(kPlainKernels, own.view, row, 1)[0];
  expect(std::abs(found - wanted) < 1e-3f * std::abs(wanted), "extreme values are right");
});

std::vector<float> odd_numbers(Random& random, int64_t count) {
  std::vector<float> all = random.reals(count, 20.0f);
  const std::vector<float> odd = {0.0f,     -0.0f, 1e-38f, 1e-42f, 1e-31f, 3e38f, -3e38f,
                                  65520.0f, 87.0f, -90.0f, 0.5f,   1.5f,   2.5f};
  for (float& x : all)
    if (random.below(8) == 0)
      x = odd[static_cast<size_t>(random.below(static_cast<int64_t>(odd.size())))];
  return all;
}

const Adds rows_of_all_kinds("quantizing on all ISAs", [] {
  Random random(4);
  for (int64_t size : {1, 7, 16, 31, 32, 48, 100, 576})
    for (int kind = 0; kind < 4; ++kind) {
      std::vector<float> values = odd_numbers(random, size);
      if (kind == 1) values[0] = kNaN;
      if (kind == 2) values[static_cast<size_t>(size - 1)] = -kInfinity;
      if (kind == 3) std::fill(values.begin(), values.end(), 0.0f);
      on_all_isas("quantize " + std::to_string(size), [&](const Kernels& isa) {
        std::vector<uint8_t> row(static_cast<size_t>(row_bytes(num_blocks(size))));
        isa.quantize(values.data(), size, row.data());
        return row;
      });
    }
});

const Adds norms("norms on all ISAs", [] {
  Random random(5);
  for (int64_t size : {1, 15, 32, 33, 64, 576, 1000})
    for (int kind = 0; kind < 6; ++kind) {
      const auto residual = random.reals(size), delta = random.reals(size);
      const auto weight = random.reals(size), delta_weight = random.reals(size);
      on_all_isas("add_norm " + std::to_string(size), [&](const Kernels& isa) {
        std::vector<float> total(static_cast<size_t>(size), 0.0f);
        std::vector<uint8_t> row(static_cast<size_t>(row_bytes(num_blocks(size))));
        isa.add_norm(residual.data(), kind % 3 ? delta.data() : nullptr,
                     kind % 3 == 2 ? delta_weight.data() : nullptr, weight.data(), 1e-5f,
                     kind > 2 ? 0.22f : 1.0f, size, total.data(), row.data());
        for (float x : total) {
          uint8_t bytes[4];
          std::memcpy(bytes, &x, 4);
          row.insert(row.end(), bytes, bytes + 4);
        }
        return row;
      });
    }
});

const Adds gates("gates, caps and rotary embeddings on all ISAs", [] {
  Random random(6);
  for (int kind = 0; kind < 200; ++kind) {
    const int64_t count = kind % 2 ? 32 : 1 + random.below(32);
    const auto gate = odd_numbers(random, 32), up = random.reals(32);
    on_all_isas("gate", [&](const Kernels& isa) {
      std::vector<uint8_t> row(static_cast<size_t>(row_bytes(2)), 0);
      isa.gate(gate.data(), up.data(), kind % 3 == 0, count, 1, 2, row.data());
      return row;
    });
    on_all_isas("cap", [&](const Kernels& isa) {
      std::vector<float> values(gate.begin(), gate.begin() + count);
      isa.cap(values.data(), count, 30.0f);
      return values;
    });
    const int64_t half = 8 * (1 + random.below(4));
    const auto cos = random.reals(half), sin = random.reals(half), weight = random.reals(64);
    const auto head = random.reals(64);
    on_all_isas("turn", [&](const Kernels& isa) {
      std::vector<float> values(64);
      isa.turn(head.data(), values.data(), kind % 2 ? weight.data() : nullptr, 1e-6f,
               kind % 5 ? cos.data() : nullptr, kind % 5 ? sin.data() : nullptr, half, 64, 0.125f);
      return values;
    });
  }
});

const Adds halves("float16 conversions equal the processor's", [] {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = from_half(static_cast<uint16_t>(bits));
    const uint16_t back = to_half(value);
    const bool is_nan = value != value;
    expect(is_nan ? (back & 0x7c00) == 0x7c00 && (back & 0x3ff) : back == bits,
           "half to float and back");
  }
  Random random(7);
  const int64_t size = 16;
  for (int round = 0; round < 5000; ++round) {
    std::vector<float> key(16), value(16);
    for (float& x : key) x = float_of(static_cast<uint32_t>(random.below(int64_t{1} << 32)));
    for (float& x : value) x = std::ldexp(random.real(), static_cast<int>(random.below(50)) - 30);
    on_all_isas("write_key and write_value", [&](const Kernels& isa) {
      std::vector<uint16_t> page(static_cast<size_t>(2 * kPage * size), 0);
      isa.write_key(key.data(), size, 3, true, page.data());
      isa.write_value(value.data(), size, 3, true, page.data());
      return page;
    });
  }
});

const Adds ranking("ranking on all ISAs, lower ids first among equals", [] {
  Random random(11);
  for (int round = 0; round < 200; ++round) {
    const int64_t count = 1 + random.below(300), size = 1 + random.below(20);
    std::vector<float> logits(static_cast<size_t>(count));
    for (float& x : logits) x = static_cast<float>(random.below(40)) - 20.0f;
    std::vector<int64_t> order(logits.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int64_t>(i);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
    });
    order.resize(static_cast<size_t>(std::min(count, size)));
    for (const Kernels* isa : isas()) {
      std::vector<float> best(static_cast<size_t>(size));
      std::vector<int64_t> ids(static_cast<size_t>(size));
      Ranking found{best.data(), ids.data(), size, 0, false};
      isa->rank(logits.data(), count, 0, found);
      ids.resize(static_cast<size_t>(found.count));
      expect_same(ids, order, std::string("ranking on ") + isa->name);
    }
  }
});

}  // namespace
}  // namespace bita::tests
