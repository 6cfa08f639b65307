// Fuzzes tokenizer.json: each file is refused with a Fault, or encodes and decodes text.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "../base/fault.h"
#include "../text/token_text.h"
#include "../text/utf8.h"

namespace {

constexpr size_t kMaxText = 200;  // bytes; a file's rules are near its start

void use(const bita::TextCodec& codec, std::string_view text) {
  text = text.substr(0, bita::utf8_error(text));
  try {
    const std::vector<int32_t> ids = codec.encode(text, true);
    codec.decode(ids);
    codec.starts_special(text);
    for (const int32_t id : ids) {
      if (id < 0 || id >= codec.tokenizer().id_limit()) __builtin_trap();
    }
  } catch (const bita::Fault&) {
    return;  // a refusal is fine too
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view json(reinterpret_cast<const char*>(data), size);
  try {
    const auto codec = bita::TextCodec::parse(json, "file", "fix it");
    use(codec, json.substr(0, kMaxText));
    use(codec, json.substr(json.size() - std::min(kMaxText, json.size())));
    use(codec, " The caf\u00e9's 12\n\n  \u4e2d\u6587 <s> ");
  } catch (const bita::Fault&) {
    return 0;
  }
  return 0;
}
