// A stand-in for ONNX Runtime: kernels of nodes, which run on tensors of its own.
//
// Operators are run through the OrtCustomOp that the library registers, as ONNX Runtime does it,
// with threads of their own for each loop, so that ThreadSanitizer sees what is not synchronized.
#pragma once

#include <onnxruntime_c_api.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "host_api.h"
#include "host_node.h"

namespace bita::tests {

// Call `body` with a context whose loops have these threads, as the run of a node has one.
void with_context(const Threads& threads, const std::function<void(OrtKernelContext*)>& body);

// A kernel of a node, as ONNX Runtime holds it. Faults are raised as std::runtime_error.
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

// Make a kernel and run it.
std::vector<Value> run(Node& node, Threads threads = {});
// The text of the status that making or running it gives; empty if it works.
std::string fault_of(Node& node, Threads threads = {});

// The operator of this name that the library registers.
const OrtCustomOp* registered(const std::string& name);
// What sessions get: domains, and the names of their operators.
const std::map<std::string, std::vector<const OrtCustomOp*>>& domains();

}  // namespace bita::tests
