#include "tensor_file.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "../base/files.h"
#include "../base/json.h"
#include "../kernels/numbers.h"

namespace bita {

namespace {

constexpr uint64_t kMaxTensorFileBytes = uint64_t{8} << 30;  // LoRA for a large model takes 1 GB
constexpr uint64_t kMaxHeaderBytes = 1u << 20;               // typical headers have 2 kB
constexpr size_t kMaxTensors = 1000, kMaxDimensions = 32, kLengthBytes = 8;
constexpr int64_t kMaxItems = int64_t{1} << 48;

int64_t item_bytes(const std::string& type) {
  static const std::map<std::string, int64_t> known = {
      {"F64", 8},     {"F32", 4},     {"F16", 2},         {"BF16", 2},       {"BOOL", 1},
      {"C64", 8},     {"I8", 1},      {"I16", 2},         {"I32", 4},        {"I64", 8},
      {"U8", 1},      {"U16", 2},     {"U32", 4},         {"U64", 8},        {"F8_E4M3", 1},
      {"F8_E5M2", 1}, {"F8_E8M0", 1}, {"F8_E4M3FNUZ", 1}, {"F8_E5M2FNUZ", 1}};
  const auto found = known.find(type);
  return found == known.end() ? 0 : found->second;
}

struct Span {
  uint64_t start = 0, stop = 0;
  std::string name;
};

// The product of the sizes, or -1 if it is too large for a tensor.
int64_t num_items(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  bool is_empty = false;
  for (const int64_t size : shape) {
    is_empty |= size == 0;
    if (size > kMaxItems || (size && count > kMaxItems / size)) return -1;
    count *= size ? size : 1;
  }
  return is_empty ? 0 : count;
}

// Add one tensor, and its faults to `faults`. first: offset of the data in the file.
void place_tensor(const std::string& name, const Json& entry, uint64_t first, TensorFile& file,
                  std::vector<Span>& spans, std::vector<std::string>& faults) {
  if (!entry.is_object()) {
    faults.push_back(name + " is " + shown(entry) + ", not an object");
    return;
  }
  const size_t num_before = faults.size();
  Fields fields(entry, name + ".", faults);
  StoredTensor tensor;
  tensor.type = fields.text("dtype");
  tensor.shape = fields.wholes("shape", 0, kMaxIndex);
  const std::vector<int64_t> offsets = fields.wholes("data_offsets", 0, kMaxIndex);
  if (faults.size() > num_before) return;
  const int64_t bytes = item_bytes(tensor.type), count = num_items(tensor.shape);
  if (bytes == 0) {
    faults.push_back(name + " has the unknown type " + shown(tensor.type));
  } else if (offsets.size() != 2 || tensor.shape.size() > kMaxDimensions) {
    faults.push_back(name + " has " + std::to_string(tensor.shape.size()) + " dimensions and " +
                     std::to_string(offsets.size()) + " offsets");
  } else if (count < 0) {
    faults.push_back(name + " has the shape " + shown(Json(tensor.shape)) + ", which is too large");
  } else if (offsets[1] - offsets[0] != count * bytes || offsets[1] < offsets[0]) {
    faults.push_back(name + " " + shown(Json(tensor.shape)) + " " + tensor.type + " takes " +
                     std::to_string(count * bytes) + " bytes, but the header gives it [" +
                     std::to_string(offsets[0]) + ", " + std::to_string(offsets[1]) + ")");
  } else {
    spans.push_back({first + static_cast<uint64_t>(offsets[0]),
                     first + static_cast<uint64_t>(offsets[1]), name});
    file.tensors[name] = std::move(tensor);
  }
}

// Throws unless the tensors cover the file from `first` to its end without gaps.
void check_gaps(std::vector<Span>& spans, uint64_t first, uint64_t num_bytes) {
  std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) {
    return std::tie(a.start, a.stop) < std::tie(b.start, b.stop);
  });
  uint64_t end = first;
  for (const Span& span : spans) {
    if (span.start != end) {
      throw std::runtime_error(
          "its header is broken: " + span.name +
          (span.start < end ? " overlaps the tensor before it" : " follows a gap"));
    }
    end = span.stop;
  }
  if (end > num_bytes) {
    throw std::runtime_error("it is truncated: " + std::to_string(num_bytes) + " bytes of " +
                             std::to_string(end));
  }
  if (end < num_bytes) {
    throw std::runtime_error("it has " + std::to_string(num_bytes - end) +
                             " bytes after its tensors");
  }
}

uint64_t header_length(const std::string& content) {
  uint64_t length = 0;
  const size_t count = std::min(content.size(), kLengthBytes);
  for (size_t i = 0; i < count; ++i) {
    length |= static_cast<uint64_t>(static_cast<unsigned char>(content[i])) << (8 * i);
  }
  if (content.size() < kLengthBytes || length < 2 || length > content.size() - kLengthBytes) {
    throw std::runtime_error("its header of " + std::to_string(length) +
                             " bytes does not fit into " + std::to_string(content.size()) +
                             " bytes");
  }
  if (length > kMaxHeaderBytes) {
    throw std::runtime_error("its header has " + std::to_string(length) + " bytes; at most " +
                             std::to_string(kMaxHeaderBytes) + " are allowed");
  }
  return length;
}

}  // namespace

int64_t StoredTensor::size() const { return std::max<int64_t>(num_items(shape), 0); }

std::vector<float> StoredTensor::floats() const {
  if (type == "F32") return numbers<float>();
  const std::vector<uint16_t> halves = numbers<uint16_t>();
  std::vector<float> found(halves.size());
  const bool is_half = type == "F16";
  for (size_t i = 0; i < halves.size(); ++i) {  // bfloat16 is the upper half of float32
    found[i] = is_half ? from_half(halves[i]) : float_of(static_cast<uint32_t>(halves[i]) << 16);
  }
  return found;
}

TensorFile parse_tensor_file(std::string content) {
  TensorFile file;
  file.content = std::make_shared<const std::string>(std::move(content));
  const uint64_t length = header_length(*file.content), first = kLengthBytes + length;
  const Json header = parse_json(std::string_view(*file.content).substr(kLengthBytes, length));
  if (!header.is_object()) {
    throw std::runtime_error("its header is " + shown(header) + ", not an object");
  }
  if (header.size() > kMaxTensors) {
    throw std::runtime_error("it has " + std::to_string(header.size()) + " tensors; at most " +
                             std::to_string(kMaxTensors) + " are allowed");
  }
  std::vector<std::string> faults;
  std::vector<Span> spans;
  for (const auto& [name, entry] : header.items()) {
    if (name != "__metadata__") {
      place_tensor(name, entry, first, file, spans, faults);
    } else if (entry.is_object()) {
      for (const auto& [key, value] : entry.items()) {
        if (value.is_string()) file.metadata[key] = value.get<std::string>();
      }
    } else {
      faults.push_back("__metadata__ is " + shown(entry) + ", not an object");
    }
  }
  if (!faults.empty()) throw std::runtime_error("its header is broken: " + faults[0]);
  check_gaps(spans, first, file.content->size());
  for (const Span& span : spans) {
    file.tensors[span.name].data =
        std::string_view(*file.content).substr(span.start, span.stop - span.start);
  }
  return file;
}

TensorFile read_tensor_file(const fs::path& path, FaultKind kind, const std::string& fix) {
  std::string content;
  try {
    content = read_regular_file(path, kMaxTensorFileBytes);
  } catch (const std::runtime_error& error) {
    throw Fault(kind, text_of(path) + " cannot be read (" + error.what() + "); " + fix);
  }
  try {
    return parse_tensor_file(std::move(content));
  } catch (const std::runtime_error& error) {
    throw Fault(kind,
                text_of(path) + " is not a whole safetensors file (" + error.what() + "); " + fix);
  }
}

std::string text_of(const std::vector<int64_t>& shape) {
  std::string text;
  for (const int64_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "[" + text + "]";
}

}  // namespace bita
