// Checks that the results of a step are meaningful numbers (`runtime/decoding/soundness.py`).
#pragma once

#include <string>

#include "../base/fault.h"

namespace bita {

// A step's results are not numbers; nothing was chosen from them or kept.
class UnsoundFault : public Fault {
 public:
  using Fault::Fault;
};

inline std::string unsound_message(const std::string& what, const std::string& where) {
  return "the model's logits are " + what + " (" + where +
         "): its activations overflow; build the engine with PRECISION=fp32, or from other weights";
}

}  // namespace bita
