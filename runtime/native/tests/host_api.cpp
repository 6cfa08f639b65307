#include "host_api.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <thread>
#include <utility>

#include "check.h"
#include "host_types.h"

namespace bita::tests {
namespace {

std::atomic<int> unreleased{0};
std::atomic<uint8_t> garbage{0};

template <class T>
T* make(T made) {
  return std::make_unique<T>(std::move(made)).release();
}

OrtStatus* status_of(const std::string& text) {
  ++unreleased;
  return make(OrtStatus{text});
}

// Return text by the API's rules: only its size if there is no memory for it.
OrtStatus* give_text(const std::string& text, char* out, size_t* size) {
  const size_t needed = text.size() + 1;
  const bool fits = out && *size >= needed;
  if (fits) std::memcpy(out, text.c_str(), needed);
  *size = needed;
  return !out || fits ? nullptr : status_of("a text has no room");
}

OrtStatus* attribute(const OrtKernelInfo* info, const char* name, int kind,
                     const Attribute*& found) {
  const auto entry = info->node->attributes.find(name);
  if (entry == info->node->attributes.end() || entry->second.kind != kind)
    return status_of(std::string("there is no attribute ") + name);
  found = &entry->second;
  return nullptr;
}

void add_tensor_functions(OrtApi& api) {
  api.GetTensorTypeAndShape = [](const OrtValue* value,
                                 OrtTensorTypeAndShapeInfo** out) noexcept -> OrtStatus* {
    ++unreleased;
    *out = make(OrtTensorTypeAndShapeInfo{value->value->type, value->value->dims});
    return nullptr;
  };
  api.ReleaseTensorTypeAndShapeInfo = [](OrtTensorTypeAndShapeInfo* info) {
    --unreleased;
    delete info;
  };
  api.GetTensorElementType = [](const OrtTensorTypeAndShapeInfo* info,
                                ONNXTensorElementDataType* out) noexcept -> OrtStatus* {
    *out = info->type;
    return nullptr;
  };
  api.GetDimensionsCount = [](const OrtTensorTypeAndShapeInfo* info,
                              size_t* out) noexcept -> OrtStatus* {
    *out = info->dims.size();
    return nullptr;
  };
  api.GetDimensions = [](const OrtTensorTypeAndShapeInfo* info, int64_t* out,
                         size_t count) noexcept -> OrtStatus* {
    std::copy_n(info->dims.begin(), std::min(count, info->dims.size()), out);
    return nullptr;
  };
  // Tensors without elements have no memory.
  api.GetTensorMutableData = [](OrtValue* value, void** out) noexcept -> OrtStatus* {
    auto& bytes = value->value->bytes;
    *out = bytes.empty() ? nullptr : bytes.data();
    return nullptr;
  };
  api.CreateStatus = [](OrtErrorCode, const char* text) noexcept { return status_of(text); };
  api.GetErrorMessage = [](const OrtStatus* status) noexcept { return status->text.c_str(); };
  api.ReleaseStatus = [](OrtStatus* status) {
    --unreleased;
    delete status;
  };
}

void add_kernel_functions(OrtApi& api) {
  api.KernelInfoGetAttribute_int64 = [](const OrtKernelInfo* info, const char* name,
                                        int64_t* out) noexcept -> OrtStatus* {
    const Attribute* found = nullptr;
    OrtStatus* status = attribute(info, name, Attribute::kInteger, found);
    if (found) *out = found->integer;
    return status;
  };
  api.KernelInfoGetAttribute_float = [](const OrtKernelInfo* info, const char* name,
                                        float* out) noexcept -> OrtStatus* {
    const Attribute* found = nullptr;
    OrtStatus* status = attribute(info, name, Attribute::kReal, found);
    if (found) *out = found->real;
    return status;
  };
  api.KernelInfoGetAttribute_string = [](const OrtKernelInfo* info, const char* name, char* out,
                                         size_t* size) noexcept -> OrtStatus* {
    const Attribute* found = nullptr;
    OrtStatus* status = attribute(info, name, Attribute::kText, found);
    return found ? give_text(found->text, out, size) : status;
  };
  api.KernelInfo_GetInputCount = [](const OrtKernelInfo* info, size_t* out) noexcept -> OrtStatus* {
    *out = info->inputs.size();
    return nullptr;
  };
  api.KernelInfo_GetInputName = [](const OrtKernelInfo* info, size_t index, char* out,
                                   size_t* size) noexcept -> OrtStatus* {
    if (index >= info->inputs.size()) return status_of("there is no such input");
    return give_text(info->inputs[index], out, size);
  };
  api.KernelInfoGetConstantInput_tensor = [](const OrtKernelInfo* info, size_t index,
                                             int* is_constant,
                                             const OrtValue** out) noexcept -> OrtStatus* {
    if (index >= info->constants.size()) return status_of("there is no such input");
    const OrtValue& value = info->constants[index];
    *is_constant = value.value ? 1 : 0;
    *out = value.value ? &value : nullptr;
    return nullptr;
  };
}

// Run a thread's share of the indices, in an order that all threads know.
void run_share(void (*body)(void*, size_t), const std::vector<size_t>& order, int thread, int count,
               const Threads& how, void* data) {
  if (how.begin) how.begin(thread);
  for (size_t i = static_cast<size_t>(thread); i < order.size(); i += static_cast<size_t>(count))
    body(data, order[i]);
}

// The thread that takes an index does not depend on time, so that a fault that needs two threads
// recurs in the next run. Batches are hints, and an index may run on any thread.
OrtStatus* run_loop(const OrtKernelContext* context, void (*body)(void*, size_t), size_t total,
                    size_t, void* data) noexcept {
  std::vector<size_t> order(total);
  const Threads& how = context->threads;
  Random random(how.order);
  for (size_t i = 0; i < total; ++i) {
    const size_t j = how.order ? static_cast<size_t>(random.below(static_cast<int64_t>(i) + 1)) : i;
    order[i] = order[j];
    order[j] = i;
  }
  const int count = static_cast<int>(std::min(static_cast<size_t>(how.count), total));
  std::vector<std::thread> others;
  for (int thread = 1; thread < count; ++thread)
    others.emplace_back([=, &order, &how] { run_share(body, order, thread, count, how, data); });
  if (count) run_share(body, order, 0, count, how, data);
  for (std::thread& other : others) other.join();
  return nullptr;
}

// New memory contains different garbage each time: anything that an operator leaves unwritten
// differs between runs.
OrtStatus* give_output(OrtKernelContext* context, size_t index, const int64_t* dims, size_t count,
                       OrtValue** out) noexcept {
  *out = nullptr;
  const Node& node = *context->node;
  if (index >= node.is_used.size()) return status_of("there is no such output");
  if (!node.is_used[index]) return nullptr;
  OrtValue& output = context->outputs[index];
  const std::vector<int64_t> shape(dims, dims + count);
  if (const auto bound = node.binds.find(index); bound != node.binds.end()) {
    output.value = context->inputs[bound->second].value;
    if (output.value->dims != shape) return status_of("a bound output has another shape");
  } else {
    Value& made = context->made[index];
    Type type = context->op->GetOutputType(context->op, index);
    if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED) type = context->open_type;
    made = zeros(type, shape);
    const uint8_t filling = garbage += 37;
    std::fill(made.bytes.begin(), made.bytes.end(), filling);
    output.value = &made;
  }
  *out = &output;
  return nullptr;
}

void add_context_functions(OrtApi& api) {
  api.KernelContext_GetInput = [](const OrtKernelContext* context, size_t index,
                                  const OrtValue** out) noexcept -> OrtStatus* {
    const bool is_there = index < context->inputs.size() && context->inputs[index].value;
    *out = is_there ? &context->inputs[index] : nullptr;
    return nullptr;
  };
  api.KernelContext_GetOutput = give_output;
  api.KernelContext_ParallelFor = run_loop;
}

std::vector<OrtCustomOpDomain*>& made_domains() {
  static std::vector<OrtCustomOpDomain*> all;
  return all;
}

void add_registration(OrtApi& api) {
  api.CreateCustomOpDomain = [](const char* name, OrtCustomOpDomain** out) noexcept -> OrtStatus* {
    *out = make(OrtCustomOpDomain{name, {}});
    made_domains().push_back(*out);
    return nullptr;
  };
  api.CustomOpDomain_Add = [](OrtCustomOpDomain* domain,
                              const OrtCustomOp* op) noexcept -> OrtStatus* {
    domain->ops.push_back(op);
    return nullptr;
  };
  api.AddCustomOpDomain = [](OrtSessionOptions* options,
                             OrtCustomOpDomain* domain) noexcept -> OrtStatus* {
    options->domains.push_back(domain);
    return nullptr;
  };
}

}  // namespace

const OrtApi& host_api() {
  static const OrtApi api = [] {
    OrtApi made{};
    add_tensor_functions(made);
    add_kernel_functions(made);
    add_context_functions(made);
    add_registration(made);
    return made;
  }();
  return api;
}

const OrtApiBase* api_base(bool is_too_old) {
  static const OrtApiBase base = {[](uint32_t) noexcept -> const OrtApi* { return &host_api(); },
                                  []() noexcept { return "a stand-in"; }};
  static const OrtApiBase old_base = {[](uint32_t) noexcept -> const OrtApi* { return nullptr; },
                                      []() noexcept { return "an old stand-in"; }};
  return is_too_old ? &old_base : &base;
}

int num_unreleased() { return unreleased; }

}  // namespace bita::tests
