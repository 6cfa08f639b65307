// Errors that a user of the library can act on. The message says what happened, the value, and the
// fix. Faults are exceptions inside the library; the C interface turns them into statuses.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

namespace bita {

enum class FaultKind {
  kEngine,   // an engine directory is broken, or cannot run here
  kAdapter,  // an adapter file is broken, or belongs to another model
  kTree,     // a tree description is invalid, or does not fit the engine
  kPrompt,   // a prompt, a message list or an answer option is invalid
  kUse,      // a call violates a function's contract
  kSystem,   // the system refused memory, a thread, or a library
};

class Fault : public std::runtime_error {
 public:
  Fault(FaultKind kind, const std::string& message);

  FaultKind kind() const { return kind_; }

 private:
  FaultKind kind_;
};

// Throws one Fault that lists the `faults` of `subject`, like Python's `raise_faults`. Does nothing
// if the list is empty.
void raise_faults(FaultKind kind, const std::string& subject,
                  const std::vector<std::string>& faults);

}  // namespace bita
