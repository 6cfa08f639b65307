#include "host.h"

#include <stdexcept>
#include <utility>

#include "host_types.h"

extern "C" OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base);

namespace bita::tests {
namespace {

// Throws the message of a status.
void raise(OrtStatus* status) {
  if (!status) return;
  const std::string text = status->text;
  host_api().ReleaseStatus(status);
  throw std::runtime_error(text);
}

// The number of inputs up to the last one present.
size_t count_inputs(const Node& node) {
  size_t count = node.inputs.size();
  while (count && node.inputs[count - 1].value.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED)
    --count;
  return count;
}

// ONNX Runtime rejects graphs whose types differ from those of the operator.
void check_types(const OrtCustomOp* op, const Node& node) {
  if (op->GetInputTypeCount(op) != node.inputs.size()) throw std::logic_error("inputs differ");
  if (op->GetOutputTypeCount(op) != node.is_used.size()) throw std::logic_error("outputs differ");
  for (size_t i = 0; i < node.inputs.size(); ++i) {
    const Type type = op->GetInputType(op, i), given = node.inputs[i].value.type;
    if (type != ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED &&
        given != ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED && type != given)
      throw std::logic_error(node.op + ": a graph cannot have this type of input");
  }
}

}  // namespace

HostKernel::HostKernel(const Node& node) : op_(registered(node.op)) {
  check_types(op_, node);
  OrtKernelInfo info{&node, {}, {}};
  constants_.resize(count_inputs(node));
  for (size_t i = 0; i < constants_.size(); ++i) {
    const Input& input = node.inputs[i];
    const bool is_there = input.value.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    info.inputs.push_back(is_there ? "input " + std::to_string(i) : "");
    if (is_there && input.is_constant) constants_[i] = input.value;
    info.constants.push_back({is_there && input.is_constant ? &constants_[i] : nullptr});
  }
  raise(op_->CreateKernelV2(op_, &host_api(), &info, &kernel_));
}

HostKernel::~HostKernel() {
  if (kernel_) op_->KernelDestroy(kernel_);
}

std::vector<Value> HostKernel::run(Node& node, Threads threads) const {
  check_types(op_, node);
  OrtKernelContext context{op_, &node, std::move(threads), {}, {}, {}, {}};
  context.inputs.resize(count_inputs(node));
  for (size_t i = 0; i < context.inputs.size(); ++i) {
    Value& value = node.inputs[i].value;
    const bool is_there = value.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    context.inputs[i].value = is_there ? &value : nullptr;
    if (op_->GetInputType(op_, i) == ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED)
      context.open_type = value.type;
  }
  context.made.resize(node.is_used.size());
  context.outputs.resize(node.is_used.size());
  raise(op_->KernelComputeV2(kernel_, &context));
  std::vector<Value> results(node.is_used.size());
  for (size_t i = 0; i < results.size(); ++i)
    if (context.outputs[i].value) results[i] = *context.outputs[i].value;
  return results;
}

std::vector<Value> run(Node& node, Threads threads) {
  return HostKernel(node).run(node, std::move(threads));
}

void with_context(const Threads& threads, const std::function<void(OrtKernelContext*)>& body) {
  OrtKernelContext context{nullptr, nullptr, threads, {}, {}, {}, {}};
  body(&context);
}

std::string fault_of(Node& node, Threads threads) {
  try {
    run(node, std::move(threads));
    return "";
  } catch (const std::runtime_error& error) {
    return error.what();
  }
}

const std::map<std::string, std::vector<const OrtCustomOp*>>& domains() {
  static const auto all = [] {
    OrtSessionOptions options;
    raise(RegisterCustomOps(&options, api_base()));
    std::map<std::string, std::vector<const OrtCustomOp*>> found;
    for (const OrtCustomOpDomain* domain : options.domains) found[domain->name] = domain->ops;
    return found;
  }();
  return all;
}

const OrtCustomOp* registered(const std::string& name) {
  for (const OrtCustomOp* op : domains().at("bita"))
    if (op->GetName(op) == name) return op;
  throw std::logic_error("there is no operator " + name);
}

}  // namespace bita::tests
