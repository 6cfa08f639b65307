// Fuzzes graphs: the locations of the weights are found, or the graph is refused.
#include <cstddef>
#include <cstdint>
#include <stdexcept>

#include "../engine/graph_weights.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    bita::weight_locations({reinterpret_cast<const char*>(data), size});
  } catch (const std::runtime_error&) {
  }
  return 0;
}
