// Every road gives the bits of the plain one.
#include "../kernels/roads.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "../kernels/numbers.h"
#include "check.h"

namespace bita::tests {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Run `one` on every road that is here and compare what it returns with the plain road's.
template <class Run>
void on_all_roads(const std::string& what, const Run& run) {
  const auto wanted = run(kPlainKernels);
  for (const Kernels* road : roads()) expect_same(run(*road), wanted, what + " on " + road->name);
}

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

std::vector<float> product(const Kernels& road, const Weights& weights,
                           const std::vector<uint8_t>& rows, int64_t num_rows) {
  std::vector<float> out(static_cast<size_t>(num_rows * weights.outputs));
  for (int64_t tile = 0; tile < weights.tiles(); ++tile)
    road.linear({&weights, rows.data(), num_rows, out.data() + tile * kTile, weights.outputs}, tile,
                tile + 1);
  return out;
}

const Adds linear_roads("linear on all roads", [] {
  Random random(1);
  for (int64_t inputs : {1, 31, 32, 33, 100, 200})
    for (int64_t outputs : {1, 15, 16, 17, 50})
      for (int bits : {4, 8})
        for (bool minima : {false, true})
          for (int64_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 17}) {
            const OwnWeights own = random_weights(random, outputs, inputs, bits, minima);
            const auto activations = random_rows(random, rows, inputs);
            on_all_roads(
                "linear " + std::to_string(outputs) + "x" + std::to_string(inputs) + ", " +
                    std::to_string(bits) + " bits, " + std::to_string(rows) + " rows",
                [&](const Kernels& road) { return product(road, own.view, activations, rows); });
          }
});

const Adds linear_rows("a row's product does not depend on the rows beside it", [] {
  Random random(2);
  const OwnWeights own = random_weights(random, 40, 96, 4, true);
  const int64_t bytes = row_bytes(3);
  const auto rows = random_rows(random, 17, 96);
  for (const Kernels* road : roads()) {
    const auto all = product(*road, own.view, rows, 17);
    for (int64_t row = 0; row < 17; ++row) {
      const std::vector<uint8_t> alone(rows.begin() + row * bytes,
                                       rows.begin() + (row + 1) * bytes);
      const std::vector<float> wanted(all.begin() + row * 40, all.begin() + (row + 1) * 40);
      expect_same(product(*road, own.view, alone, 1), wanted,
                  std::string("alone on ") + road->name);
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
  on_all_roads("extreme values",
               [&](const Kernels& road) { return product(road, own.view, row, 1); });
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

const Adds rows_of_all_kinds("quantizing on all roads", [] {
  Random random(4);
  for (int64_t size : {1, 7, 16, 31, 32, 48, 100, 576})
    for (int kind = 0; kind < 4; ++kind) {
      std::vector<float> values = odd_numbers(random, size);
      if (kind == 1) values[0] = kNaN;
      if (kind == 2) values[static_cast<size_t>(size - 1)] = -kInfinity;
      if (kind == 3) std::fill(values.begin(), values.end(), 0.0f);
      on_all_roads("quantize " + std::to_string(size), [&](const Kernels& road) {
        std::vector<uint8_t> row(static_cast<size_t>(row_bytes(num_blocks(size))));
        road.quantize(values.data(), size, row.data());
        return row;
      });
    }
});

const Adds norms("norms on all roads", [] {
  Random random(5);
  for (int64_t size : {1, 15, 32, 33, 64, 576, 1000})
    for (int kind = 0; kind < 6; ++kind) {
      const auto residual = random.reals(size), delta = random.reals(size);
      const auto weight = random.reals(size), delta_weight = random.reals(size);
      on_all_roads("add_norm " + std::to_string(size), [&](const Kernels& road) {
        std::vector<float> total(static_cast<size_t>(size), 0.0f);
        std::vector<uint8_t> row(static_cast<size_t>(row_bytes(num_blocks(size))));
        road.add_norm(residual.data(), kind % 3 ? delta.data() : nullptr,
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

const Adds gates("gates, caps and rotary embeddings on all roads", [] {
  Random random(6);
  for (int kind = 0; kind < 200; ++kind) {
    const int64_t count = kind % 2 ? 32 : 1 + random.below(32);
    const auto gate = odd_numbers(random, 32), up = random.reals(32);
    on_all_roads("gate", [&](const Kernels& road) {
      std::vector<uint8_t> row(static_cast<size_t>(row_bytes(2)), 0);
      road.gate(gate.data(), up.data(), kind % 3 == 0, count, 1, 2, row.data());
      return row;
    });
    on_all_roads("cap", [&](const Kernels& road) {
      std::vector<float> values(gate.begin(), gate.begin() + count);
      road.cap(values.data(), count, 30.0f);
      return values;
    });
    const int64_t half = 8 * (1 + random.below(4));
    const auto cos = random.reals(half), sin = random.reals(half), weight = random.reals(64);
    const auto head = random.reals(64);
    on_all_roads("turn", [&](const Kernels& road) {
      std::vector<float> values(64);
      road.turn(head.data(), values.data(), kind % 2 ? weight.data() : nullptr, 1e-6f,
                kind % 5 ? cos.data() : nullptr, kind % 5 ? sin.data() : nullptr, half, 64, 0.125f);
      return values;
    });
  }
});

const Adds halves("float16 is that of the processor", [] {
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
    on_all_roads("write_key and write_value", [&](const Kernels& road) {
      std::vector<uint16_t> page(static_cast<size_t>(2 * kPage * size), 0);
      road.write_key(key.data(), size, 3, true, page.data());
      road.write_value(value.data(), size, 3, true, page.data());
      return page;
    });
  }
});

// A text of `length` slots and a step of rows with tails, attended to in every chunk.
struct Scene {
  int64_t size, length, num_queries, slots;
  bool is_half;
  float softcap;
  std::vector<float> queries;
  std::vector<std::vector<uint8_t>> pages;
  std::vector<const void*> page_list;
  std::vector<int64_t> first, stop;
  std::vector<std::vector<int32_t>> tails;
  std::vector<const int32_t*> tail_list;
};

Scene random_scene(Random& random) {
  Scene scene;
  scene.size = 16 * (1 + random.below(5));
  scene.length = random.below(200);
  scene.num_queries = 1 + random.below(kMaxQueries);
  scene.slots = scene.length + 1 + random.below(90);
  scene.is_half = random.below(2) == 0;
  scene.softcap = random.below(3) ? 0.0f : 20.0f;
  scene.queries = random.reals(scene.num_queries * scene.size);
  for (int64_t page = 0; page * kPage < scene.slots; ++page) {
    const auto cells = random.reals(2 * kPage * scene.size);
    std::vector<uint8_t> bytes(cells.size() * (scene.is_half ? 2 : 4));
    for (size_t i = 0; i < cells.size(); ++i) {
      const uint16_t half = to_half(cells[i]);
      if (scene.is_half)
        std::memcpy(bytes.data() + 2 * i, &half, 2);
      else
        std::memcpy(bytes.data() + 4 * i, &cells[i], 4);
    }
    scene.pages.push_back(std::move(bytes));
  }
  for (const auto& page : scene.pages) scene.page_list.push_back(page.data());
  for (int64_t q = 0; q < scene.num_queries; ++q) {
    std::vector<int32_t> tail;
    for (int64_t slot = scene.length; slot < scene.slots; ++slot)
      if (random.below(3)) tail.push_back(static_cast<int32_t>(slot));
    if (tail.empty()) tail.push_back(static_cast<int32_t>(scene.slots - 1));
    scene.stop.push_back(scene.length + static_cast<int64_t>(tail.size()));
    scene.first.push_back(random.below(4) ? 0 : random.below(scene.stop.back()));
    scene.tails.push_back(std::move(tail));
  }
  for (const auto& tail : scene.tails) scene.tail_list.push_back(tail.data());
  return scene;
}

std::vector<float> attended(const Kernels& road, const Scene& scene, int64_t first_query,
                            int64_t count) {
  const size_t results = static_cast<size_t>(count);
  const int64_t chunks = (scene.slots + kChunk - 1) / kChunk;
  std::vector<float> maxima(results * static_cast<size_t>(chunks)), sums(maxima.size());
  std::vector<float> values(maxima.size() * static_cast<size_t>(scene.size));
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    ChunkTask task{};
    task.head_dim = scene.size;
    task.num_queries = count;
    task.queries = scene.queries.data() + first_query * scene.size;
    task.pages = scene.page_list.data();
    task.begin = chunk * kChunk;
    task.shared = scene.length;
    task.first = scene.first.data() + first_query;
    task.stop = scene.stop.data() + first_query;
    task.tails = scene.tail_list.data() + first_query;
    task.softcap = scene.softcap;
    task.is_half = scene.is_half;
    task.maxima = maxima.data() + chunk * count;
    task.sums = sums.data() + chunk * count;
    task.values = values.data() + chunk * count * scene.size;
    road.attend(task);
  }
  std::vector<float> out(static_cast<size_t>(count * scene.size));
  for (int64_t q = 0; q < count; ++q)
    road.mean({maxima.data() + q, sums.data() + q, values.data() + q * scene.size}, count, chunks,
              scene.size, out.data() + q * scene.size);
  return out;
}

const Adds attention_roads("attention on all roads, and by each query alone", [] {
  Random random(8);
  for (int round = 0; round < 50; ++round) {
    const Scene scene = random_scene(random);
    on_all_roads("attention",
                 [&](const Kernels& road) { return attended(road, scene, 0, scene.num_queries); });
    const auto all = attended(kPlainKernels, scene, 0, scene.num_queries);
    for (int64_t q = 0; q < scene.num_queries; ++q) {
      const std::vector<float> wanted(all.begin() + q * scene.size,
                                      all.begin() + (q + 1) * scene.size);
      expect_same(attended(kPlainKernels, scene, q, 1), wanted, "a query alone");
    }
  }
});

// Chunks of several queries, [chunk][query]; in some of them a query sees nothing.
struct Chunks {
  int64_t size, count, num_queries;
  std::vector<float> maxima, sums, values;

  Partial at(int64_t chunk, int64_t query) {
    const int64_t index = chunk * num_queries + query;
    return {maxima.data() + index, sums.data() + index, values.data() + index * size};
  }
};

Chunks random_chunks(Random& random, int64_t count) {
  const int64_t size = 16 * (1 + random.below(5)), num_queries = 1 + random.below(3);
  const int64_t all = count * num_queries, blind = 1 + random.below(4);
  Chunks chunks{size,
                count,
                num_queries,
                random.reals(all, 9.0f),
                random.reals(all),
                random.reals(all * size)};
  for (int64_t i = 0; i < all; ++i) {
    float& sum = chunks.sums[static_cast<size_t>(i)];
    sum = 1.0f + sum * sum;
    if (random.below(blind) == 0) continue;
    sum = 0.0f;
    std::fill_n(chunks.values.begin() + i * size, size, 0.0f);
  }
  return chunks;
}

const Adds means("mean has the bits of merging one chunk after the other, on all roads", [] {
  Random random(11);
  for (int64_t count = 1; count <= 40; ++count) {
    const Chunks chunks = random_chunks(random, count);
    for (int64_t query = 0; query < chunks.num_queries; ++query) {
      Chunks merged = chunks;
      const Partial total = merged.at(0, query);
      for (int64_t i = 1; i < count; ++i)
        kPlainKernels.merge(merged.at(i, query), chunks.size, total);
      std::vector<float> wanted(total.values, total.values + chunks.size);
      for (float& x : wanted) x /= *total.sum == 0.0f ? 1.0f : *total.sum;
      on_all_roads("mean", [&](const Kernels& road) {
        Chunks given = chunks;
        std::vector<float> out(wanted.size(), 7.0f);
        road.mean(given.at(0, query), chunks.num_queries, count, chunks.size, out.data());
        expect_same(out, wanted, "the merged chunks, divided");
        return out;
      });
    }
  }
});

// The keys of a query at the slots of their positions, as plain decoding would have them.
Scene committed(const Scene& scene, int64_t q) {
  Scene plain = scene;
  const size_t cell = scene.is_half ? 2 : 4;
  const auto place = [&](int64_t slot, int64_t d, bool is_key) {
    const int64_t in_page = slot % kPage;
    return static_cast<size_t>(is_key ? d * kPage + in_page : (kPage + in_page) * scene.size + d) *
           cell;
  };
  const auto& tail = scene.tails[static_cast<size_t>(q)];
  for (size_t i = 0; i < tail.size(); ++i)
    for (int64_t d = 0; d < scene.size; ++d)
      for (bool is_key : {false, true}) {
        const int64_t from = tail[i], to = scene.length + static_cast<int64_t>(i);
        std::memcpy(plain.pages[static_cast<size_t>(to / kPage)].data() + place(to, d, is_key),
                    scene.pages[static_cast<size_t>(from / kPage)].data() + place(from, d, is_key),
                    cell);
      }
  for (size_t page = 0; page < plain.pages.size(); ++page)
    plain.page_list[page] = plain.pages[page].data();
  plain.length = scene.stop[static_cast<size_t>(q)];
  plain.slots = plain.length;
  return plain;
}

const Adds attention_places("a branch gives the bits of its keys in a row", [] {
  Random random(9);
  for (int round = 0; round < 40; ++round) {
    const Scene scene = random_scene(random);
    for (const Kernels* road : roads()) {
      const auto all = attended(*road, scene, 0, scene.num_queries);
      for (int64_t q = 0; q < scene.num_queries; ++q) {
        const std::vector<float> wanted(all.begin() + q * scene.size,
                                        all.begin() + (q + 1) * scene.size);
        expect_same(attended(*road, committed(scene, q), q, 1), wanted,
                    std::string("committed keys on ") + road->name);
      }
    }
  }
});

// Softmax in double precision.
std::vector<double> exact_attention(const Scene& scene, int64_t q) {
  const Scene plain = committed(scene, q);
  const auto cell = [&](int64_t slot, int64_t d, bool is_key) -> double {
    const int64_t in_page = slot % kPage;
    const size_t at =
        static_cast<size_t>(is_key ? d * kPage + in_page : (kPage + in_page) * scene.size + d);
    const uint8_t* bytes = plain.pages[static_cast<size_t>(slot / kPage)].data();
    uint16_t half;
    float value;
    if (scene.is_half) {
      std::memcpy(&half, bytes + 2 * at, 2);
      return from_half(half);
    }
    std::memcpy(&value, bytes + 4 * at, 4);
    return value;
  };
  std::vector<double> out(static_cast<size_t>(scene.size), 0.0);
  double sum = 0;
  for (int64_t slot = scene.first[static_cast<size_t>(q)]; slot < plain.length; ++slot) {
    double score = 0;
    for (int64_t d = 0; d < scene.size; ++d)
      score += cell(slot, d, true) * scene.queries[static_cast<size_t>(q * scene.size + d)];
    if (scene.softcap != 0.0f) score = scene.softcap * std::tanh(score / scene.softcap);
    const double share = std::exp(score);
    sum += share;
    for (int64_t d = 0; d < scene.size; ++d)
      out[static_cast<size_t>(d)] += share * cell(slot, d, false);
  }
  for (double& x : out) x /= sum;
  return out;
}

const Adds attention_values("attention is the softmax of its scores", [] {
  Random random(10);
  for (int round = 0; round < 50; ++round) {
    const Scene scene = random_scene(random);
    const auto all = attended(kPlainKernels, scene, 0, scene.num_queries);
    for (int64_t q = 0; q < scene.num_queries; ++q) {
      const auto wanted = exact_attention(scene, q);
      for (int64_t d = 0; d < scene.size; ++d) {
        const double found = all[static_cast<size_t>(q * scene.size + d)];
        const double error = std::abs(found - wanted[static_cast<size_t>(d)]);
        expect(error < 2e-5, "attention is off by " + std::to_string(error));
      }
    }
  }
});

const Adds ranking("ranking on all roads, lower ids first among equals", [] {
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
    for (const Kernels* road : roads()) {
      std::vector<float> best(static_cast<size_t>(size));
      std::vector<int64_t> ids(static_cast<size_t>(size));
      Ranking found{best.data(), ids.data(), size, 0, false};
      road->rank(logits.data(), count, 0, found);
      ids.resize(static_cast<size_t>(found.count));
      expect_same(ids, order, std::string("ranking on ") + road->name);
    }
  }
});

}  // namespace
}  // namespace bita::tests
