// Fuzzes manifests: each is refused with a message, or parsed.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "../engine/manifest.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  bita::Json value;
  try {
    value = bita::parse_json({reinterpret_cast<const char*>(data), size});
  } catch (const std::runtime_error&) {
    return 0;
  }
  if (!value.is_object()) return 0;
  std::vector<std::string> faults = bita::format_faults(value);
  const bita::Manifest manifest = bita::parse_manifest(value, faults);
  if (faults.empty() && manifest.prefix_length >= manifest.capacity) __builtin_trap();
  return 0;
}
