// The API's opaque types in the stand-in for ONNX Runtime.
#pragma once

#include <onnxruntime_c_api.h>

#include <cstdint>
#include <string>
#include <vector>

#include "host_api.h"
#include "host_node.h"

struct OrtValue {
  bita::tests::Value* value;
};
struct OrtStatus {
  std::string text;
};
struct OrtTensorTypeAndShapeInfo {
  bita::tests::Type type;
  std::vector<int64_t> dims;
};
struct OrtKernelInfo {
  const bita::tests::Node* node;
  std::vector<std::string> inputs;  // names; empty for absent ones
  std::vector<OrtValue> constants;  // null for inputs that are not constant
};
struct OrtKernelContext {
  const OrtCustomOp* op;
  bita::tests::Node* node;
  bita::tests::Threads threads;
  // Type of the input and output whose type the operator leaves open.
  bita::tests::Type open_type;
  std::vector<OrtValue> inputs;
  std::vector<bita::tests::Value> made;  // outputs with memory of their own
  std::vector<OrtValue> outputs;
};
struct OrtCustomOpDomain {
  std::string name;
  std::vector<const OrtCustomOp*> ops;
};
struct OrtSessionOptions {
  std::vector<OrtCustomOpDomain*> domains;
};
