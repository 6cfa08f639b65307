#include "host_node.h"

#include <algorithm>

namespace bita::tests {

size_t type_size(Type type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE:
      return 8;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
      return 4;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
      return 2;
    default:
      return 1;
  }
}

Value zeros(Type type, const std::vector<int64_t>& dims) {
  size_t bytes = type_size(type);
  for (const int64_t dim : dims) bytes *= static_cast<size_t>(dim);
  return {type, dims, std::vector<uint8_t>(bytes)};
}

Value floats(const std::vector<int64_t>& dims, const std::vector<float>& cells) {
  return value(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, dims, cells);
}
Value halves(const std::vector<int64_t>& dims, const std::vector<uint16_t>& cells) {
  return value(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, dims, cells);
}
Value ints(const std::vector<int64_t>& dims, const std::vector<int64_t>& cells) {
  return value(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, dims, cells);
}
Value bytes(const std::vector<int64_t>& dims, const std::vector<uint8_t>& cells) {
  return value(ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, dims, cells);
}
Value bools(const std::vector<int64_t>& dims, const std::vector<uint8_t>& cells) {
  return value(ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL, dims, cells);
}

void Node::set(const std::string& name, int64_t integer) {
  attributes[name] = {Attribute::kInteger, integer, 0, ""};
}
void Node::set(const std::string& name, float real) {
  attributes[name] = {Attribute::kReal, 0, real, ""};
}
void Node::set(const std::string& name, const char* text) {
  attributes[name] = {Attribute::kText, 0, 0, text};
}

size_t Node::index_of(const std::string& name) const {
  const auto found = std::find(names_.begin(), names_.end(), name);
  if (found == names_.end()) throw std::logic_error(op + " has no input " + name);
  return static_cast<size_t>(found - names_.begin());
}

}  // namespace bita::tests
