// Fuzzes files of pair scores, for a model with 4 tokens and rank 2: each is refused with a
// message, or its tables have the expected sizes.
#include <cstddef>
#include <cstdint>
#include <string>

#include "../base/fault.h"
#include "../engine/pair_tables.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  bita::Manifest manifest;
  manifest.vocab_size = 4;
  manifest.pair_rank = 2;
  try {
    const bita::PairTables tables = bita::parse_pair_tables(
        std::string(reinterpret_cast<const char*>(data), size), manifest, "pairs");
    int sum = 0;
    for (int i = 0; i < 8; ++i) sum += tables.left[i] + tables.right[i];
    if (sum < 0) __builtin_trap();
  } catch (const bita::Fault&) {
  }
  return 0;
}
