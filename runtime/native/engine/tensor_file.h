// Small safetensors files, which are read completely: adapters and pair tables.
//
// A file consists of the length of its header (8 bytes, little endian), the header, which is JSON,
// and the tensors without gaps: https://huggingface.co/docs/safetensors.
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

// A tensor in a file. Its data has the size that type and shape imply, and no alignment.
struct StoredTensor {
  std::string type;  // "F32", "F16" and so on
  std::vector<int64_t> shape;
  std::string_view data;

  bool is_float() const { return type == "F32" || type == "F16" || type == "BF16"; }
  int64_t size() const;
  // A copy of a floating-point tensor in float32.
  std::vector<float> floats() const;
  // A copy of an integer tensor, whose elements have the size of T.
  template <class T>
  std::vector<T> numbers() const {
    std::vector<T> copied(data.size() / sizeof(T));
    if (!copied.empty()) data.copy(reinterpret_cast<char*>(copied.data()), data.size());
    return copied;
  }
};

struct TensorFile {
  std::shared_ptr<const std::string> content;  // the tensors point into it
  std::map<std::string, std::string> metadata;
  std::map<std::string, StoredTensor> tensors;
};

// Parse the header in `content`. Throws std::runtime_error whose message completes "The file ...".
TensorFile parse_tensor_file(std::string content);

// Read a complete file. Throws a Fault that names the file and ends with `fix`.
TensorFile read_tensor_file(const std::filesystem::path& path, FaultKind kind,
                            const std::string& fix);

// Sizes in the notation of a Python list.
std::string text_of(const std::vector<int64_t>& shape);

}  // namespace bita
