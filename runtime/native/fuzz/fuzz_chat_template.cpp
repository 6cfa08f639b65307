// Fuzzes chat_pieces.json, with a conversation drawn from the same bytes.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "../base/fault.h"
#include "../text/chat_template.h"

namespace {

constexpr std::string_view kRoles[] = {"system", "developer", "user", "assistant", "tool", "bot"};
constexpr size_t kMaxFuzzed = 8;  // messages

// Takes bytes and short texts from the end of the input.
class Source {
 public:
  explicit Source(std::string_view bytes) : bytes_(bytes) {}

  size_t number() {
    if (bytes_.empty()) return 0;
    const auto last = static_cast<unsigned char>(bytes_.back());
    bytes_.remove_suffix(1);
    return last;
  }
  std::string text() {
    const size_t size = std::min<size_t>(number() % 32, bytes_.size());
    const std::string found(bytes_.substr(bytes_.size() - size));
    bytes_.remove_suffix(size);
    return found;
  }
  std::string_view rest() const { return bytes_; }

 private:
  std::string_view bytes_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Source source({reinterpret_cast<const char*>(data), size});
  const size_t flags = source.number();
  std::vector<bita::ChatMessage> messages(source.number() % kMaxFuzzed);
  for (bita::ChatMessage& message : messages) {
    message.role = kRoles[source.number() % std::size(kRoles)];
    message.content = source.text();
  }
  try {
    const auto chat = bita::ChatTemplate::parse(source.rest(), "fuzzed");
    const std::string text = chat.render(messages, flags % 2 == 1);
    if (chat.render(messages, flags % 2 == 1) != text) __builtin_trap();
  } catch (const bita::Fault&) {
    return 0;  // no other exception may leave the library
  }
  return 0;
}
