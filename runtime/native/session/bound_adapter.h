// An adapter in the form that the steps of an engine read.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "../device/device.h"
#include "../engine/adapter.h"

namespace bita {

class StepHost;

// Holds the adapter's values as tensors and, for native operators, its prefix in pages of its own.
class BoundAdapter {
 public:
  // Throws a Fault if the graph cannot use it. The engine's turn is needed to create or destroy
  // one.
  BoundAdapter(StepHost& host, std::shared_ptr<const Adapter> adapter);
  ~BoundAdapter();
  BoundAdapter(const BoundAdapter&) = delete;
  BoundAdapter& operator=(const BoundAdapter&) = delete;

  const Adapter& adapter() const { return *adapter_; }
  int64_t prefix_length() const { return prefix_length_; }
  // Inputs of a step, by their names in the graph.
  const std::map<std::string, OrtPointer<OrtValue>>& values() const { return values_; }
  // Whether steps have mask rows; false if the graph has LoRA and the adapter does not.
  bool has_mask_rows() const { return has_mask_rows_; }

 private:
  // Add a host value to the inputs: in place, or as a copy on a GPU.
  void add_value(const std::string& name, const void* data, size_t num_bytes,
                 const std::vector<int64_t>& shape, ONNXTensorElementDataType type);
  void bind_packed_lora();
  void bind_lora();
  void write_prefix();

  StepHost& host_;
  std::shared_ptr<const Adapter> adapter_;
  int64_t prefix_length_;
  std::vector<int64_t> prefix_pages_;
  int64_t num_prefix_pages_ = 0;
  bool has_mask_rows_ = true;
  std::vector<uint16_t> lora_memory_;              // for native operators
  std::map<std::string, FloatArray> lora_arrays_;  // for other operators, on a CPU
  std::vector<std::unique_ptr<DeviceMemory>> copies_;
  std::map<std::string, OrtPointer<OrtValue>> values_;
};

}  // namespace bita
