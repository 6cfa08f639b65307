// Draws on all ISAs, compared with a plain computation in doubles, and random numbers, compared
// with numpy's.
#include "../decoding/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "../kernels/isa.h"
#include "check.h"

namespace bita::tests {
namespace {

struct Rule {
  double temperature = 1.0, top_p = 1.0, min_p = 0.0;
  int64_t top_k = 0;
};

// The distribution that the rules leave of a row, by their definition: 0 for removed tokens.
std::vector<double> plain_probabilities(const std::vector<float>& logits, const Rule& rule) {
  std::vector<size_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return logits[a] > logits[b]; });
  std::vector<double> kept(logits.size());
  for (size_t i = 0; i < order.size(); ++i) {
    const bool is_among = !rule.top_k || static_cast<int64_t>(i) < rule.top_k ||
                          logits[order[i]] == logits[order[static_cast<size_t>(rule.top_k - 1)]];
    const double x = (static_cast<double>(logits[order[i]]) - logits[order[0]]) / rule.temperature;
    if (is_among) kept[order[i]] = std::exp(x);
  }
  const double total = std::accumulate(kept.begin(), kept.end(), 0.0);
  double sum = 0.0, least = rule.min_p;
  for (const size_t place : order) {
    sum += kept[place];
    if (rule.top_p < 1 && sum >= rule.top_p * total) {
      least = std::max(least, kept[place]);
      break;
    }
  }
  for (double& weight : kept) weight = weight >= least * (1 - 1e-6) ? weight : 0.0;
  const double left = std::accumulate(kept.begin(), kept.end(), 0.0);
  for (double& weight : kept) weight /= left;
  return kept;
}

int64_t drawn(std::vector<float> logits, const Rule& rule, double number) {
  DrawTask task{logits.data(),    static_cast<int64_t>(logits.size()),
                rule.temperature, rule.top_p,
                rule.min_p,       rule.top_k,
                number,           -1};
  return draw(task) == 0 ? task.place : -1;
}

// Whether a draw of `number` may give this place; both places are right at a border.
bool is_right(const std::vector<double>& probabilities, double number, int64_t place) {
  if (place < 0 || place >= static_cast<int64_t>(probabilities.size())) return false;
  const auto end = probabilities.begin() + place;
  const double before = std::accumulate(probabilities.begin(), end, 0.0);
  return probabilities[static_cast<size_t>(place)] > 0 && number >= before - 1e-5 &&
         number <= before + probabilities[static_cast<size_t>(place)] + 1e-5;
}

const Adds draws("draws follow the distribution, the same on all ISAs", [] {
  Random random(77);
  const Rule rules[] = {{1.0, 1.0, 0.0, 0},  {0.7, 1.0, 0.0, 5},    {1.4, 0.8, 0.0, 0},
                        {1.0, 1.0, 0.05, 0}, {0.9, 0.95, 0.01, 40}, {2.0, 1.0, 0.0, 200},
                        {1e-5, 1.0, 0.0, 0}, {1e30, 1.0, 0.0, 0}};
  for (const int64_t size : {1, 2, 15, 16, 257, 1000})
    for (const Rule& rule : rules) {
      std::vector<float> logits = random.reals(size);
      for (float& logit : logits) logit *= 8.0f;
      if (size > 20) logits[7] = logits[3];  // equal ones
      const std::vector<double> wanted = plain_probabilities(logits, rule);
      for (const double number : {0.0, 0.1, 0.37, 0.5, 0.9, 0.999999}) {
        const std::string before = kernels().name;
        std::vector<int64_t> places;
        for (const Kernels* isa : isas()) {
          use_isa(isa->name);
          places.push_back(drawn(logits, rule, number));
        }
        use_isa(before);
        expect(is_right(wanted, number, places[0]), "a draw of " + std::to_string(number));
        expect(std::count(places.begin(), places.end(), places[0]) ==
                   static_cast<int64_t>(places.size()),
               "the same place on all ISAs");
      }
    }
});

const Adds forbidden("a token that is e^87 times less probable is never drawn", [] {
  const std::vector<float> logits = {-1e9f, 0.0f, -1e9f, -200.0f};
  for (const double number : {0.0, 0.5, 0.9999999999999999})
    expect(drawn(logits, {}, number) == 1, "the only token with weight");
});

const Adds refused("draws from invalid distributions are rejected", [] {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  expect(drawn({0.0f, nan}, {}, 0.5) == -1, "NaN");
  expect(drawn({0.0f, infinity}, {}, 0.5) == -1, "infinity");
  expect(drawn({}, {}, 0.5) == -1, "no token");
  expect(drawn({0.0f}, {}, 1.0) == -1, "a number of 1");
  expect(drawn({0.0f}, {0.0}, 0.5) == -1, "a temperature of 0");
  expect(drawn({0.0f}, {1.0, 0.0}, 0.5) == -1, "no probability");
});

const Adds philox("random numbers are those of numpy's Philox", [] {
  struct Known {
    uint64_t seed, choice, position;
    int64_t first, second;  // 53 bits
  };
  const Known all[] = {{0, 0, 0, 104003916602523, 4525033197209392},
                       {7, 2, 11, 8520546596958842, 6980538524742596},
                       {~uint64_t{0}, 1, 1000, 3609713343293480, 2783579096954401}};
  for (const Known& known : all) {
    Draws draws(known.seed, known.choice, known.position);
    expect(draws.next() == static_cast<double>(known.first) * 0x1p-53, "the first number");
    expect(draws.next() == static_cast<double>(known.second) * 0x1p-53, "the second number");
  }
});

}  // namespace
}  // namespace bita::tests
