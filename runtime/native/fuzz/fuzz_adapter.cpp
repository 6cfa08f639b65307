// Fuzzes adapter files: each is refused with a message, or its LoRA can be packed.
#include <cstddef>
#include <cstdint>
#include <string>

#include "../base/fault.h"
#include "../engine/packed_lora.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const bita::Adapter adapter =
        bita::parse_adapter(std::string(reinterpret_cast<const char*>(data), size), "adapter");
    const auto packed = bita::packed_lora(adapter);
    if (packed.size() != (adapter.lora.empty() ? 0u : 8u)) __builtin_trap();
    if (adapter.num_masks() < 1 || adapter.prefix_length() < 0) __builtin_trap();
  } catch (const bita::Fault&) {
  }
  return 0;
}
