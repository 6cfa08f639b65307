// A minimal test framework: named cases, and checks that report differences.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <string>
#include <utility>
#include <vector>

namespace bita::tests {

struct Case {
  std::string name;
  void (*run)();
};

inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

inline int& num_failures() {
  static int count = 0;
  return count;
}

struct Adds {
  Adds(std::string name, void (*run)()) { cases().push_back({std::move(name), run}); }
};

inline void expect(bool holds, const std::string& what) {
  if (holds) return;
  ++num_failures();
  std::printf("FAILED: %s\n", what.c_str());
}

// Run all cases, or those whose name contains the first argument; returns the status for main.
inline int run_cases(int count, char** arguments) {
  std::setvbuf(stdout, nullptr, _IOLBF, 4096);  // a sanitizer may end the process
  int num_run = 0;
  for (const Case& one : cases()) {
    if (count > 1 && one.name.find(arguments[1]) == std::string::npos) continue;
    try {
      one.run();
    } catch (const std::exception& error) {
      expect(false, one.name + ": " + error.what());
    }
    ++num_run;
  }
  std::printf("%d passed, %d failed\n", num_run, num_failures());
  return num_failures() || !num_run ? 1 : 0;
}

// Compare bit for bit, so that NaN equals NaN and 0 differs from -0.
template <class T>
void expect_same(const std::vector<T>& found, const std::vector<T>& wanted,
                 const std::string& what) {
  if (found.size() != wanted.size()) {
    expect(false, what + ": " + std::to_string(found.size()) + " elements, not " +
                      std::to_string(wanted.size()));
    return;
  }
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (std::memcmp(&found[i], &wanted[i], sizeof(T)) == 0) continue;
    expect(false, what + ": element " + std::to_string(i) + " of " + std::to_string(wanted.size()) +
                      " is " + std::to_string(static_cast<double>(found[i])) + ", not " +
                      std::to_string(static_cast<double>(wanted[i])));
    return;
  }
}

// Random numbers that are the same on every machine: SplitMix64.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t x = state_ += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
  }
  int64_t below(int64_t bound) {
    return static_cast<int64_t>(next() % static_cast<uint64_t>(bound));
  }
  float real(float size = 1.0f) {  // in (-size, size)
    return size * (static_cast<float>(next() >> 40) / 8388608.0f - 1.0f);
  }
  std::vector<float> reals(int64_t count, float size = 1.0f) {
    std::vector<float> all(static_cast<size_t>(count));
    for (float& x : all) x = real(size);
    return all;
  }

 private:
  uint64_t state_;
};

}  // namespace bita::tests
