// The operators' view of ONNX Runtime's C API: attributes, tensors, threads, registration.
//
// Inside the library, errors are exceptions; `Operator` converts them to statuses, so that none
// crosses the C ABI.
#pragma once

#include <onnxruntime_c_api.h>

#include <array>
#include <cstdint>
#include <exception>
#include <initializer_list>
#include <stdexcept>
#include <string>

namespace bita {

// The API of the ONNX Runtime that loaded the library.
const OrtApi& ort();
void set_ort(const OrtApi* api);

// Raise std::runtime_error with the message of a status, and release the status.
void check(OrtStatus* status);

// Dimensions of a tensor; the operators use at most four.
class Dims {
 public:
  static constexpr size_t kMax = 4;

  Dims() = default;
  Dims(std::initializer_list<int64_t> sizes) : count_(sizes.size()) {
    size_t i = 0;
    for (int64_t size : sizes) sizes_[i++] = size;
  }
  void resize(size_t count) { count_ = count; }
  size_t size() const { return count_; }
  int64_t* data() { return sizes_.data(); }
  const int64_t* data() const { return sizes_.data(); }
  int64_t operator[](size_t i) const { return sizes_[i]; }
  const int64_t* begin() const { return sizes_.data(); }
  const int64_t* end() const { return sizes_.data() + count_; }

 private:
  std::array<int64_t, kMax> sizes_{};
  size_t count_ = 0;
};

std::string text_of(const Dims& dims);

constexpr auto kAnyType = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
constexpr auto kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
constexpr auto kHalf = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
constexpr auto kByte = ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
constexpr auto kInt64 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
constexpr auto kBool = ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;

// A tensor that ONNX Runtime owns; empty for an absent input. A tensor without elements may have no
// memory.
struct Tensor {
  void* data = nullptr;
  Dims dims;
  ONNXTensorElementDataType type = kAnyType;

  explicit operator bool() const { return type != kAnyType; }
  template <class T>
  const T* as() const {
    return static_cast<const T*>(data);
  }
  int64_t size() const;
};

Tensor tensor_of(const OrtValue* value);

// Raise std::runtime_error unless the shape is `dims`, where -1 matches any size.
void check_dims(const char* name, const Tensor& tensor, const Dims& dims);

// One input or output of an operator.
struct Port {
  const char* name;
  ONNXTensorElementDataType type;
  bool is_optional = false;
};

// A node while its kernel is created: attributes and constant inputs. Raises std::runtime_error if
// one is missing or invalid.
class NodeInfo {
 public:
  NodeInfo(const OrtKernelInfo* info, const Port* inputs) : info_(info), inputs_(inputs) {}

  int64_t integer(const char* name) const;
  int64_t size(const char* name) const;  // an integer from 1 to 2^31 - 1
  float real(const char* name) const;    // finite
  float real(const char* name, float otherwise) const;
  std::string text(const char* name) const;
  bool has_input(size_t index) const;
  const char* name(size_t index) const { return inputs_[index].name; }
  // An initializer; empty if the input is absent and optional.
  Tensor constant(size_t index) const;

 private:
  const OrtKernelInfo* info_;
  const Port* inputs_;
};

// Number of processors of the machine, 1 to 64. Results do not depend on it.
int64_t num_processors();
// Assume another number of processors, for tests. No operator may run meanwhile.
void use_processors(int64_t count);

// A node while it runs.
class NodeRun {
 public:
  NodeRun(OrtKernelContext* context, const Port* inputs, const Port* outputs)
      : context_(context), inputs_(inputs), outputs_(outputs) {}

  // Empty if the input is absent.
  Tensor input(size_t index) const;
  const char* name(size_t index) const { return inputs_[index].name; }
  // Null if the graph does not use this optional output, or if it has no elements.
  void* output(size_t index, const int64_t* dims, size_t num_dims) const;
  template <class T>
  T* output(size_t index, std::initializer_list<int64_t> dims) const {
    return static_cast<T*>(output(index, dims.begin(), dims.size()));
  }

  // Call body(i) for each i in [0, total) on all threads, in up to `batches` pieces (0: one for
  // each thread). The first indices run on the same thread as in other loops. body must not throw.
  template <class Body>
  void parallel(int64_t total, const Body& body, int64_t batches = 0) const {
    if (total <= 1) return total ? body(0) : void();
    auto call = [](void* data, size_t i) {
      (*static_cast<const Body*>(data))(static_cast<int64_t>(i));
    };
    check(ort().KernelContext_ParallelFor(context_, call, static_cast<size_t>(total),
                                          static_cast<size_t>(batches), const_cast<Body*>(&body)));
  }

  // Like `parallel`, for `work` floating-point operations: a small loop runs on this thread alone,
  // and a large one in pieces that threads take when they become free.
  template <class Body>
  void parallel_work(int64_t total, int64_t work, const Body& body) const {
    constexpr int64_t kWorthThreads = 1 << 14;  // about 2 us
    constexpr int64_t kWorthBatches = 1 << 20;
    constexpr int64_t kBatches = 16;
    if (work >= kWorthThreads) return parallel(total, body, work >= kWorthBatches ? kBatches : 0);
    for (int64_t i = 0; i < total; ++i) body(i);
  }

 private:
  OrtKernelContext* context_;
  const Port *inputs_, *outputs_;
};

// Makes an OrtCustomOp from a kernel class that has kName, kInputs, kOutputs, a constructor that
// takes a NodeInfo, and a method run(NodeRun).
template <class Kernel>
struct Operator : OrtCustomOp {
  Operator() : OrtCustomOp{} {
    version = BITA_ORT_API_VERSION;
    GetName = [](const OrtCustomOp*) { return Kernel::kName; };
    GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
    GetInputTypeCount = [](const OrtCustomOp*) { return Kernel::kInputs.size(); };
    GetInputType = [](const OrtCustomOp*, size_t i) { return Kernel::kInputs[i].type; };
    GetInputCharacteristic = [](const OrtCustomOp*, size_t i) {
      return characteristic(Kernel::kInputs[i]);
    };
    GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
    GetOutputTypeCount = [](const OrtCustomOp*) { return Kernel::kOutputs.size(); };
    GetOutputType = [](const OrtCustomOp*, size_t i) { return Kernel::kOutputs[i].type; };
    GetOutputCharacteristic = [](const OrtCustomOp*, size_t i) {
      return characteristic(Kernel::kOutputs[i]);
    };
    GetVariadicInputMinArity = [](const OrtCustomOp*) { return 0; };
    GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 0; };
    GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 0; };
    GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
    GetStartVersion = [](const OrtCustomOp*) { return 1; };
    GetEndVersion = [](const OrtCustomOp*) { return 1; };
    CreateKernelV2 = [](const OrtCustomOp*, const OrtApi*, const OrtKernelInfo* info,
                        void** kernel) {
      return guarded([&] { *kernel = new Kernel(NodeInfo(info, Kernel::kInputs.data())); });
    };
    KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
      return guarded([&] {
        static_cast<const Kernel*>(kernel)->run(
            NodeRun(context, Kernel::kInputs.data(), Kernel::kOutputs.data()));
      });
    };
    KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  }

 private:
  static OrtCustomOpInputOutputCharacteristic characteristic(const Port& port) {
    return port.is_optional ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
  }
  template <class Body>
  static OrtStatus* guarded(const Body& body) {
    try {
      body();
      return nullptr;
    } catch (const std::exception& error) {
      const std::string text = std::string("bita.") + Kernel::kName + ": " + error.what();
      return ort().CreateStatus(ORT_INVALID_ARGUMENT, text.c_str());
    }
  }
};

}  // namespace bita
