// Attention: every ISA gives the bits of the plain kernels, whatever else is attended to.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "../kernels/numbers.h"
#include "on_all_isas.h"

namespace bita::tests {
namespace {

// A text of `length` slots and a step of rows with tails, which is attended to in every chunk.
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

std::vector<float> attended(const Kernels& isa, const Scene& scene, int64_t first_query,
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
    isa.attend(task);
  }
  std::vector<float> out(static_cast<size_t>(count * scene.size));
  for (int64_t q = 0; q < count; ++q)
    isa.mean({maxima.data() + q, sums.data() + q, values.data() + q * scene.size}, count, chunks,
             scene.size, out.data() + q * scene.size);
  return out;
}

const Adds attention_isas("attention on all ISAs, and for each query alone", [] {
  Random random(8);
  for (int round = 0; round < 50; ++round) {
    const Scene scene = random_scene(random);
    on_all_isas("attention",
                [&](const Kernels& isa) { return attended(isa, scene, 0, scene.num_queries); });
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

const Adds means("mean has the bits of merging one chunk after the other, on all ISAs", [] {
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
      on_all_isas("mean", [&](const Kernels& isa) {
        Chunks given = chunks;
        std::vector<float> out(wanted.size(), 7.0f);
        isa.mean(given.at(0, query), chunks.num_queries, count, chunks.size, out.data());
        expect_same(out, wanted, "the merged chunks, divided");
        return out;
      });
    }
  }
});

// The scene with a query's keys at the slots of their positions, as in plain decoding.
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
    for (const Kernels* isa : isas()) {
      const auto all = attended(*isa, scene, 0, scene.num_queries);
      for (int64_t q = 0; q < scene.num_queries; ++q) {
        const std::vector<float> wanted(all.begin() + q * scene.size,
                                        all.begin() + (q + 1) * scene.size);
        expect_same(attended(*isa, committed(scene, q), q, 1), wanted,
                    std::string("committed keys on ") + isa->name);
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

}  // namespace
}  // namespace bita::tests
