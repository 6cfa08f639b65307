// Small files of tensors in the format of safetensors, read whole: adapters and pair tables.
//
// A file has the length of its header (8 bytes, little endian), the header, which is JSON, and the
// tensors without gaps: https://huggingface.co/docs/safetensors.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "../base/fault.h"

namespace bita {

// A tensor as it lies in a file; the data has the size that type and shape say, and no alignment.
struct StoredTensor {
  std::string type;  // "F32", "F16" and so on
  std::vector<int64_t> shape;
  std::string_view data;

  bool is_float() const { return type == "F32" || type == "F16" || type == "BF16"; }
  int64_t size() const;
  // A copy in float32, of a tensor of floats.
  std::vector<float> floats() const;
  // A copy of whole numbers of this type, of a tensor of as many bytes each.
  template <class T>
  std::vector<T> numbers() const {
    std::vector<T> copied(data.size() / sizeof(T));
    if (!copied.empty()) data.copy(reinterpret_cast<char*>(copied.data()), data.size());
    return copied;
  }
};

struct TensorFile {
  std::shared_ptr<const std::string> content;  // which the tensors look at
  std::map<std::string, std::string> metadata;
  std::map<std::string, StoredTensor> tensors;
};

// Read the header in `content`. Throws std::runtime_error with half a sentence.
TensorFile parse_tensor_file(std::string content);

// Read a file whole. Throws a Fault that names the file and ends with `fix`.
TensorFile read_tensor_file(const std::filesystem::path& path, FaultKind kind,
                            const std::string& fix);

// Sizes as Python writes a list.
std::string text_of(const std::vector<int64_t>& shape);

}  // namespace bita
