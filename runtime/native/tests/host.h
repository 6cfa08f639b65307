// A stand-in for ONNX Runtime: runs kernels of nodes on tensors of its own.
//
// Operators run through the OrtCustomOp that the library registers, as in ONNX Runtime. Each loop
// has threads of its own, so that ThreadSanitizer detects missing synchronization.
#pragma once

#include <onnxruntime_c_api.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "host_api.h"
#include "host_node.h"

namespace bita::tests {

// Call `body` with a context whose loops have these threads, like the one that a node's run gets.
void with_context(const Threads& threads, const std::function<void(OrtKernelContext*)>& body);

// A kernel of a node, as ONNX Runtime holds it. Raises faults as std::runtime_error.
class HostKernel {
 public:
  explicit HostKernel(const Node& node);
  ~HostKernel();
  HostKernel(const HostKernel&) = delete;
  HostKernel& operator=(const HostKernel&) = delete;

  // Compute all outputs. The node is that of the constructor, with other values fed.
  std::vector<Value> run(Node& node, Threads threads = {}) const;

 private:
  const OrtCustomOp* op_;
  std::vector<Value> constants_;
  void* kernel_ = nullptr;
};

// Create a kernel and run it.
std::vector<Value> run(Node& node, Threads threads = {});
// The message when creating or running the kernel fails; empty if it works.
std::string fault_of(Node& node, Threads threads = {});

// The operator with this name that the library registers.
const OrtCustomOp* registered(const std::string& name);
// The domains that sessions get, with their operators.
const std::map<std::string, std::vector<const OrtCustomOp*>>& domains();

}  // namespace bita::tests
