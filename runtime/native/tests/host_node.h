// A node of a graph, its attributes, and the tensors that it is fed.
#pragma once

#include <onnxruntime_c_api.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace bita::tests {

using Type = ONNXTensorElementDataType;

// A tensor, or an absent input. Its memory is exactly as large as the tensor, for AddressSanitizer.
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

// An attribute of any type; an operator that asks for another type finds none.
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

// A node of a graph, and its inputs.
class Node {
 public:
  // A node of an operator class, which names the ports.
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
  std::vector<bool> is_used;       // for each output
  std::map<size_t, size_t> binds;  // outputs that are bound to the memory of an input

 private:
  std::vector<std::string> names_;
};

}  // namespace bita::tests
