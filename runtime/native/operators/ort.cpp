#include "ort.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <thread>

namespace bita {
namespace {

constexpr int64_t kMaxProcessors = 64;

int64_t in_range(int64_t processors) { return std::clamp<int64_t>(processors, 1, kMaxProcessors); }

// Every session sets it, possibly while operators of other sessions run.
std::atomic<const OrtApi*> api{nullptr};
int64_t processors = in_range(std::thread::hardware_concurrency());

struct ReleaseShape {
  OrtTensorTypeAndShapeInfo* shape = nullptr;
  ~ReleaseShape() {
    if (shape) ort().ReleaseTensorTypeAndShapeInfo(shape);
  }
};

}  // namespace

const OrtApi& ort() { return *api.load(std::memory_order_relaxed); }
void set_ort(const OrtApi* given) { api.store(given, std::memory_order_relaxed); }

void check(OrtStatus* status) {
  if (!status) return;
  const std::string text = ort().GetErrorMessage(status);
  ort().ReleaseStatus(status);
  throw std::runtime_error(text);
}

int64_t num_processors() { return processors; }
void use_processors(int64_t count) { processors = in_range(count); }

std::string text_of(const Dims& dims) {
  std::string text = "[";
  for (size_t i = 0; i < dims.size(); ++i)
    text += (i ? ", " : "") + (dims[i] < 0 ? std::string("?") : std::to_string(dims[i]));
  return text + "]";
}

int64_t Tensor::size() const {
  int64_t size = 1;
  for (int64_t dim : dims) size *= dim;
  return size;
}

Tensor tensor_of(const OrtValue* value) {
  Tensor tensor;
  ReleaseShape owner;
  check(ort().GetTensorTypeAndShape(value, &owner.shape));
  check(ort().GetTensorElementType(owner.shape, &tensor.type));
  size_t num_dims = 0;
  check(ort().GetDimensionsCount(owner.shape, &num_dims));
  if (num_dims > Dims::kMax)
    throw std::runtime_error("a tensor has " + std::to_string(num_dims) +
                             " dimensions, more than " + std::to_string(Dims::kMax));
  tensor.dims.resize(num_dims);
  check(ort().GetDimensions(owner.shape, tensor.dims.data(), num_dims));
  // The API has no read-only access; inputs are never written.
  check(ort().GetTensorMutableData(const_cast<OrtValue*>(value), &tensor.data));
  return tensor;
}

void check_dims(const char* name, const Tensor& tensor, const Dims& dims) {
  bool fits = tensor.dims.size() == dims.size();
  for (size_t i = 0; fits && i < dims.size(); ++i) fits = dims[i] < 0 || dims[i] == tensor.dims[i];
  if (!fits)
    throw std::runtime_error(std::string(name) + " has the shape " + text_of(tensor.dims) +
                             ", not " + text_of(dims));
}

int64_t NodeInfo::integer(const char* name) const {
  int64_t value = 0;
  check(ort().KernelInfoGetAttribute_int64(info_, name, &value));
  return value;
}

int64_t NodeInfo::size(const char* name) const {
  const int64_t value = integer(name);
  if (value < 1 || value > INT32_MAX)
    throw std::runtime_error(std::string(name) + " is " + std::to_string(value) + ", not 1 to " +
                             std::to_string(INT32_MAX));
  return value;
}

float NodeInfo::real(const char* name) const {
  float value = 0;
  check(ort().KernelInfoGetAttribute_float(info_, name, &value));
  if (!std::isfinite(value)) throw std::runtime_error(std::string(name) + " is not finite");
  return value;
}

float NodeInfo::real(const char* name, float otherwise) const {
  float value = 0;
  OrtStatus* status = ort().KernelInfoGetAttribute_float(info_, name, &value);
  if (!status) return real(name);
  ort().ReleaseStatus(status);
  return otherwise;
}

std::string NodeInfo::text(const char* name) const {
  size_t size = 0;
  check(ort().KernelInfoGetAttribute_string(info_, name, nullptr, &size));
  std::string value(size, '\0');
  check(ort().KernelInfoGetAttribute_string(info_, name, value.data(), &size));
  value.resize(size ? size - 1 : 0);  // drops the terminating zero
  return value;
}

bool NodeInfo::has_input(size_t index) const {
  size_t count = 0, size = 0;
  check(ort().KernelInfo_GetInputCount(info_, &count));
  if (index >= count) return false;
  check(ort().KernelInfo_GetInputName(info_, index, nullptr, &size));
  return size > 1;
}

Tensor NodeInfo::constant(size_t index) const {
  const Port& port = inputs_[index];
  if (!has_input(index)) {
    if (port.is_optional) return {};
    throw std::runtime_error(std::string("there is no ") + port.name);
  }
  int is_constant = 0;
  const OrtValue* value = nullptr;
  check(ort().KernelInfoGetConstantInput_tensor(info_, index, &is_constant, &value));
  if (!is_constant || !value)
    throw std::runtime_error(std::string(port.name) + " is not an initializer");
  return tensor_of(value);
}

Tensor NodeRun::input(size_t index) const {
  const OrtValue* value = nullptr;
  check(ort().KernelContext_GetInput(context_, index, &value));
  if (!value) {
    if (inputs_[index].is_optional) return {};
    throw std::runtime_error(std::string("there is no ") + inputs_[index].name);
  }
  return tensor_of(value);
}

void* NodeRun::output(size_t index, const int64_t* dims, size_t num_dims) const {
  OrtValue* value = nullptr;
  check(ort().KernelContext_GetOutput(context_, index, dims, num_dims, &value));
  if (!value) {
    if (outputs_[index].is_optional) return nullptr;
    throw std::runtime_error(std::string(outputs_[index].name) + " is not used");
  }
  void* data = nullptr;
  check(ort().GetTensorMutableData(value, &data));
  return data;
}

}  // namespace bita
