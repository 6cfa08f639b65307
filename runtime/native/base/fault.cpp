#include "fault.h"

#include <algorithm>

namespace bita {

namespace {

constexpr size_t kMaxFaults = 20;     // listed in one message; a broken file may have millions
constexpr size_t kMaxMessage = 8000;  // bytes

// Cuts a long message at the start of a UTF-8 character.
std::string cut_message(const std::string& message) {
  if (message.size() <= kMaxMessage) return message;
  size_t end = kMaxMessage;
  while (end > 0 && (static_cast<unsigned char>(message[end]) & 0xC0) == 0x80) --end;
  return message.substr(0, end) + "...";
}

}  // namespace

Fault::Fault(FaultKind kind, const std::string& message)
    : std::runtime_error(cut_message(message)), kind_(kind) {}

void raise_faults(FaultKind kind, const std::string& subject,
                  const std::vector<std::string>& faults) {
  if (faults.empty()) return;
  if (faults.size() == 1) throw Fault(kind, subject + ": " + faults[0]);
  std::string lines;
  for (size_t i = 0; i < std::min(faults.size(), kMaxFaults); ++i) lines += "\n  - " + faults[i];
  if (faults.size() > kMaxFaults) {
    lines += "\n  and " + std::to_string(faults.size() - kMaxFaults) + " more";
  }
  throw Fault(kind, subject + ": " + std::to_string(faults.size()) + " faults:" + lines);
}

}  // namespace bita
