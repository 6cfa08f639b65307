// Errors that the user of the library can act on: what happened, the value, and the fix.
//
// Inside the library they are exceptions; the C interface turns them into statuses.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

namespace bita {

enum class FaultKind {
  kEngine,   // an engine directory is broken, or cannot run here
  kAdapter,  // an adapter file is broken, or belongs to another model
  kTree,     // a tree description is not a tree, or does not fit the engine
  kPrompt,   // a prompt, a message list or an option of an answer is not usable
  kUse,      // a function was called in a way that its contract excludes
  kSystem,   // the system refused something: memory, threads, a library
};

class Fault : public std::runtime_error {
 public:
  Fault(FaultKind kind, const std::string& message);

  FaultKind kind() const { return kind_; }

 private:
  FaultKind kind_;
};

// Throws one Fault that lists the `faults` of `subject`, as Python's `raise_faults` does; does
// nothing if there are none.
void raise_faults(FaultKind kind, const std::string& subject,
                  const std::vector<std::string>& faults);

}  // namespace bita
