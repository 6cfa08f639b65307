// A stand-in for ONNX Runtime: the functions that the operators call, on tensors of its own.
//
// Operators are run through the OrtCustomOp that the library registers, as ONNX Runtime does it,
// with threads of their own for each loop, so that ThreadSanitizer sees what is not synchronized.
#pragma once

#include <onnxruntime_c_api.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace bita::tests {

using Type = ONNXTensorElementDataType;

// A tensor, or an input that is absent. Memory is as large as the tensor, for AddressSanitizer.
struct Value {
  Type type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  std::vector<int64_t> dims;
  std::vector<uint8_t> bytes;

  template <class T>
  std::vector<T> cells() const {
    std::vector<T> all(bytes.size() / sizeof(T));
    if (!all.empty()) std::memcpy(all.data(), bytes.data(), bytes.size());
    return all;
  }
  template <class T>
  void set(int64_t index, T cell) {
    std::memcpy(bytes.data() + index * static_cast<int64_t>(sizeof(T)), &cell, sizeof(T));
  }
};

size_t type_size(Type type);

// A tensor of zeros.
Value zeros(Type type, const std::vector<int64_t>& dims);

template <class T>
Value value(Type type, const std::vector<int64_t>& dims, const std::vector<T>& cells) {
  Value made = zeros(type, dims);
  if (made.bytes.size() != cells.size() * sizeof(T)) throw std::logic_error("cells do not fit");
  if (!cells.empty()) std::memcpy(made.bytes.data(), cells.data(), made.bytes.size());
  return made;
}
Value floats(const std::vector<int64_t>& dims, const std::vector<float>& cells);
Value halves(const std::vector<int64_t>& dims, const std::vector<uint16_t>& cells);
Value ints(const std::vector<int64_t>& dims, const std::vector<int64_t>& cells);
Value bytes(const std::vector<int64_t>& dims, const std::vector<uint8_t>& cells);
Value bools(const std::vector<int64_t>& dims, const std::vector<uint8_t>& cells);

// An attribute of any type; an operator that asks for another type is told that there is none.
struct Attribute {
  enum : uint8_t { kInteger, kReal, kText } kind = kInteger;
  int64_t integer = 0;
  float real = 0;
  std::string text;
};

struct Input {
  Value value;
  bool is_constant = false;
};

// A node of a graph, and what it is fed.
class Node {
 public:
  // Of an operator class, which has the names of the ports.
  template <class Kernel>
  static Node of() {
    Node node;
    node.op = Kernel::kName;
    for (const auto& port : Kernel::kInputs) node.names_.push_back(port.name);
    node.inputs.resize(Kernel::kInputs.size());
    node.is_used.assign(Kernel::kOutputs.size(), true);
    return node;
  }

  void set(const std::string& name, int64_t integer);
  void set(const std::string& name, int integer) { set(name, static_cast<int64_t>(integer)); }
  void set(const std::string& name, float real);
  void set(const std::string& name, const char* text);

  void feed(const std::string& name, Value value) { at(name) = {std::move(value), false}; }
  void fix(const std::string& name, Value value) { at(name) = {std::move(value), true}; }
  // Give an output the memory of an input.
  void bind(size_t output, const std::string& input) { binds[output] = index_of(input); }
  Input& at(const std::string& name) { return inputs[index_of(name)]; }
  Value& operator[](const std::string& name) { return at(name).value; }
  size_t index_of(const std::string& name) const;

  std::string op;
  std::map<std::string, Attribute> attributes;
  std::vector<Input> inputs;
  std::vector<bool> is_used;       // of the outputs
  std::map<size_t, size_t> binds;  // outputs that are bound to the memory of an input

 private:
  std::vector<std::string> names_;
};

// How many threads a loop has, and in which order they take its indices.
struct Threads {
  int count = 1;
  uint32_t order = 0;                   // a seed; 0 for ascending
  std::function<void(int)> begin = {};  // each calls it first, with its number from 0 on
};

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
// Base of the API; one that is too old for the library has no API.
const OrtApiBase* api_base(bool is_too_old = false);

// Statuses and shapes that were made and not yet released.
int num_unreleased();

}  // namespace bita::tests
