#include "../base/fault.h"

#include "../tests/check.h"

namespace bita::tests {
namespace {

std::string message_of(const std::vector<std::string>& faults) {
  try {
    raise_faults(FaultKind::kEngine, "engine x", faults);
  } catch (const Fault& fault) {
    return fault.what();
  }
  return "";
}

void faults_are_listed() {
  expect(message_of({}).empty(), "no fault, no error");
  expect(message_of({"a"}) == "engine x: a", "one fault is on the same line");
  expect(message_of({"a", "b"}) == "engine x: 2 faults:\n  - a\n  - b", "two are listed");
  expect(message_of(std::vector<std::string>(23, "a")).find("\n  and 3 more") != std::string::npos,
         "only twenty are listed");
}

void long_messages_are_cut_between_characters() {
  std::string text(7999, 'x');
  expect(std::string(Fault(FaultKind::kUse, text + "\u00e9\u00e9").what()) == text + "...",
         "no half character");
}

const Adds kListed("faults: listed", faults_are_listed);
const Adds kCut("faults: cut", long_messages_are_cut_between_characters);

}  // namespace
}  // namespace bita::tests
