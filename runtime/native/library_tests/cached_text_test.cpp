// Tests of texts in pages: what they share, copy and free.
#include <numeric>
#include <vector>

#include "../base/fault.h"
#include "../kernels/numbers.h"
#include "../session/paged_text.h"
#include "../tests/check.h"

namespace bita::tests {
namespace {

constexpr int64_t kLayers = 2, kHeads = 3, kWidth = 4;
constexpr auto kHalf = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
constexpr auto kSingle = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;

Manifest manifest_of(int64_t capacity) {
  Manifest manifest;
  manifest.num_layers = kLayers;
  manifest.num_kv_heads = kHeads;
  manifest.head_dim = kWidth;
  manifest.capacity = capacity;
  return manifest;
}

// A pool, in which steps write the number of a row to every cell of its slot.
class Cache {
 public:
  Cache(int64_t capacity, ONNXTensorElementDataType type, int64_t extra_bytes = 0)
      : pool(manifest_of(capacity), type, extra_bytes) {}

  void write(const PagedText& text, int64_t slot, float value) {
    each_cell(text, slot,
              [&](int64_t page, int64_t layer, int64_t cell) { set(page, layer, cell, value); });
  }

  // Returns the value of a slot, which must be the same in all of its cells.
  float read(const PagedText& text, int64_t slot) {
    std::vector<float> found;
    each_cell(text, slot, [&](int64_t page, int64_t layer, int64_t cell) {
      found.push_back(get(page, layer, cell));
    });
    for (const float value : found) expect(value == found[0], "one value in all cells of a slot");
    return found[0];
  }

  PagePool pool;

 private:
  template <class Use>
  void each_cell(const PagedText& text, int64_t slot, Use use) {
    const int64_t page = text.pages()[static_cast<size_t>(slot / kPageSlots)];
    const int64_t at = slot % kPageSlots, side = kPageSlots * kWidth;
    for (int64_t layer = 0; layer < kLayers; ++layer)
      for (int64_t head = 0; head < kHeads; ++head)
        for (int64_t d = 0; d < kWidth; ++d) {
          use(page, layer, head * 2 * side + d * kPageSlots + at);     // a key
          use(page, layer, head * 2 * side + side + at * kWidth + d);  // a value
        }
  }
  uint8_t* place(int64_t page, int64_t layer) {
    return static_cast<uint8_t*>(pool.layer(layer)) + page * pool.page_bytes();
  }
  void set(int64_t page, int64_t layer, int64_t cell, float value) {
    if (pool.type() == kHalf)
      reinterpret_cast<uint16_t*>(place(page, layer))[cell] = to_half(value);
    else
      reinterpret_cast<float*>(place(page, layer))[cell] = value;
  }
  float get(int64_t page, int64_t layer, int64_t cell) {
    return pool.type() == kHalf ? from_half(reinterpret_cast<uint16_t*>(place(page, layer))[cell])
                                : reinterpret_cast<float*>(place(page, layer))[cell];
  }
};

// Append `count` rows to a text, numbered from `first`.
void append(Cache& cache, PagedText& text, int64_t count, float first) {
  text.reserve(count);
  for (int64_t i = 0; i < count; ++i)
    cache.write(text, text.length() + i, first + static_cast<float>(i));
  text.append(count);
}

void expect_values(Cache& cache, const PagedText& text, const std::vector<float>& wanted) {
  expect(text.length() == static_cast<int64_t>(wanted.size()), "the length");
  for (size_t i = 0; i < wanted.size(); ++i)
    expect(cache.read(text, static_cast<int64_t>(i)) == wanted[i],
           "slot " + std::to_string(i) + " holds " + std::to_string(wanted[i]));
}

std::vector<float> counted(int64_t count, float first = 1.0f) {
  std::vector<float> values(static_cast<size_t>(count));
  std::iota(values.begin(), values.end(), first);
  return values;
}

const Adds commits("accepted rows move to the end of the text, over pages", [] {
  for (const auto type : {kHalf, kSingle}) {
    Cache cache(200, type);
    PagedText text(cache.pool);
    append(cache, text, 14, 1.0f);
    text.reserve(6);  // a step of six rows, across the end of a page
    for (int64_t row = 0; row < 6; ++row)
      cache.write(text, 14 + row, 100.0f + static_cast<float>(row));
    text.commit({0, 2, 5});
    std::vector<float> wanted = counted(14);
    wanted.insert(wanted.end(), {100.0f, 102.0f, 105.0f});
    expect_values(cache, text, wanted);
  }
});

const Adds shares("texts share pages, and copy before they write", [] {
  Cache cache(200, kHalf, 1 << 20);
  PagedText trunk(cache.pool), branch(cache.pool);
  append(cache, trunk, 20, 1.0f);
  const int64_t num_free = cache.pool.num_free();
  branch.share(trunk);
  expect(cache.pool.num_free() == num_free, "sharing takes no page");
  expect(branch.num_missing(1) == 1, "the last page is to be copied");
  append(cache, branch, 3, 50.0f);
  append(cache, trunk, 2, 70.0f);
  std::vector<float> wanted = counted(20);
  wanted.insert(wanted.end(), {50.0f, 51.0f, 52.0f});
  expect_values(cache, branch, wanted);
  wanted = counted(20);
  wanted.insert(wanted.end(), {70.0f, 71.0f});
  expect_values(cache, trunk, wanted);
  expect(branch.pages()[0] == trunk.pages()[0], "full pages stay shared");
});

const Adds gives_back("freed pages are zeroed and reused", [] {
  Cache cache(64, kHalf);
  const int64_t num_free = cache.pool.num_free();
  int64_t page = -1;
  {
    PagedText text(cache.pool);
    append(cache, text, 40, 1.0f);
    page = text.pages().back();
    text.keep(17);
    expect(text.num_pages() == 2 && text.length() == 17, "two pages are left");
    text.keep(99);
    expect(text.length() == 17, "keeping more changes nothing");
  }
  expect(cache.pool.num_free() == num_free, "all pages are free");
  PagedText other(cache.pool);
  other.reserve(64);
  for (int64_t slot = 0; slot < 64; ++slot) expect(cache.read(other, slot) == 0.0f, "zeros");
  expect(page >= 0, "there was a page");
});

const Adds ends("a pool without a free page reports it", [] {
  Cache cache(32, kHalf);
  PagedText text(cache.pool), other(cache.pool);
  text.reserve(32);
  other.reserve(1);  // the extra page that texts and the prefix may need
  std::string message;
  try {
    other.reserve(17);
  } catch (const Fault& fault) {
    message = fault.what();
  }
  expect(message.find("pages of the cache are in use") != std::string::npos, message);
});

const Adds clears("rows that steps left after a text are zeroed", [] {
  Cache cache(64, kSingle);
  PagedText text(cache.pool);
  append(cache, text, 10, 1.0f);
  text.reserve(20);
  for (int64_t slot = 10; slot < 30; ++slot) cache.write(text, slot, 9.0f);
  text.clear_rest();
  expect_values(cache, text, counted(10));
  for (int64_t slot = 10; slot < 30; ++slot) expect(cache.read(text, slot) == 0.0f, "zero");
});

}  // namespace
}  // namespace bita::tests
