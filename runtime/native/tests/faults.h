// Nodes that operators reject: changes to a working node, and the resulting messages.
#pragma once

#include <limits>
#include <utility>

#include "step.h"
#include "thin.h"

namespace bita::tests {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

inline Value floats_of(const std::vector<int64_t>& dims) {
  return zeros(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, dims);
}
inline Value halves_of(const std::vector<int64_t>& dims) {
  return zeros(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, dims);
}
inline Value bytes_of(const std::vector<int64_t>& dims) {
  return zeros(ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, dims);
}
inline Value ints_of(const std::vector<int64_t>& dims) {
  return zeros(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, dims);
}

// Makes changes to a working node and checks the message of its status.
class Faults {
 public:
  explicit Faults(Node good) : good_(std::move(good)) {
    Node works = good_;
    expect(fault_of(works).empty(), works.op + " works before it is broken");
  }
  ~Faults() { expect(num_unreleased() == 0, good_.op + " releases what it was given"); }
  Faults(const Faults&) = delete;
  Faults& operator=(const Faults&) = delete;

  // Expect the fault `wanted` from a node, and that its inputs are not written.
  void broken(Node bad, const std::string& wanted) const {
    const std::vector<Input> before = bad.inputs;
    const std::string text = fault_of(bad, {3, 1});
    expect(text.find("bita." + bad.op + ": ") == 0 && text.find(wanted) != std::string::npos,
           bad.op + " reports '" + text + "', not '" + wanted + "'");
    for (size_t i = 0; i < before.size(); ++i)
      expect_same(bad.inputs[i].value.bytes, before[i].value.bytes, bad.op + "'s memory");
  }
  template <class T>
  void attribute(const std::string& name, T number, const std::string& text) const {
    Node bad = good_;
    bad.set(name, number);
    broken(std::move(bad), text);
  }
  void no_attribute(const std::string& name) const {
    Node bad = good_;
    bad.attributes.erase(name);
    broken(std::move(bad), name);
  }
  void fed(const std::string& name, const Value& value, const std::string& text) const {
    Node bad = good_;
    bad[name] = value;  // keeps whether it is constant
    broken(std::move(bad), text);
  }
  void fed_both(const std::string& name, const std::string& other, const Value& value,
                const std::string& text) const {
    Node bad = good_;
    bad[name] = bad[other] = value;
    broken(std::move(bad), text);
  }
  void missing(const std::string& name) const { fed(name, {}, "there is no " + name); }
  // Feed zeros of another shape than `wanted`, which is written as in the message.
  void reshaped(const std::string& name, const std::vector<int64_t>& dims,
                const std::string& wanted) const;
  template <class T>
  void cell(const std::string& name, int64_t index, T number, const std::string& text) const {
    Node bad = good_;
    bad[name].set(index, number);
    broken(std::move(bad), text);
  }
  void not_constant(const std::string& name) const {
    Node bad = good_;
    bad.at(name).is_constant = false;
    broken(std::move(bad), name + " is not an initializer");
  }
  void unused(size_t output, const std::string& name) const {
    Node bad = good_;
    bad.is_used[output] = false;
    broken(std::move(bad), name + " is not used");
  }

  void size(const std::string& name) const;  // an attribute from 1 to 2^31 - 1
  void real(const std::string& name) const;  // a finite attribute

  const Node& good() const { return good_; }

 private:
  Node good_;
};

// Faults of a layer's 4-bit weights [outputs, inputs]. prefix: of the names of its inputs.
void weight_faults(const Faults& faults, const std::string& prefix, int64_t outputs,
                   int64_t inputs);
// Faults of a vector that must be an initializer.
void vector_faults(const Faults& faults, const std::string& name, int64_t size);
// Faults of LoRA of rank 2, except those of first_mask_row and of the layer.
void lora_faults(const Faults& faults, const std::string& prefix, int64_t tiles, int64_t inputs);
// Faults of the layer. down: the first input that the layer indexes.
void layer_faults(const Faults& faults, const std::string& down);
void mask_row_faults(const Faults& faults);

// Two texts of 20 and 5 slots on three pages each, with two rows each; a prefix of 10. There are
// two heads of 32, which share keys.
Step small_step(Random& random);
// Faults of attributes and initializers of Attention and its sublayer.
void attention_faults(const Faults& faults);
// Faults of the sights and the cache of that step. Creates few other sights, so that the node's
// remain valid.
void sights_faults(const Faults& faults, const Step& step);

}  // namespace bita::tests
