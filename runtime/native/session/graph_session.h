// An engine's graph as an ONNX Runtime session, checked against the manifest.
#pragma once

#include <onnxruntime_c_api.h>

#include <map>
#include <string>
#include <vector>

#include "../device/device.h"
#include "../engine/engine_directory.h"
#include "held_file.h"
#include "log.h"

namespace bita {

// An input or output: its type and its sizes, -1 for sizes that are not fixed.
struct GraphValue {
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  std::vector<int64_t> shape;
};
using GraphValues = std::map<std::string, GraphValue>;

struct SessionSettings {
  int num_threads = 0;           // 0: one for each core that the process may use
  bool maps_weights = false;     // leave the weights of native operators mapped from the file
  std::string onnxruntime_path;  // empty: see `ort_library`
};

class GraphSession {
 public:
  // Throws a Fault.
  GraphSession(const EngineDirectory& engine, Device& device, const SessionSettings& settings,
               const Log& log);

  const GraphValues& inputs() const { return inputs_; }
  const GraphValues& outputs() const { return outputs_; }
  bool has_input(const std::string& name) const { return inputs_.count(name) != 0; }
  // The type of past and present caches.
  ONNXTensorElementDataType cache_type() const { return cache_type_; }
  // Whether the graph leaves writing the cache to the runtime.
  bool gives_rows() const { return !engine_.manifest.is_native() && outputs_.count("rows") != 0; }
  int64_t min_slots() const {
    return min_slots_;
  }  // minimum number of cache slots that a step writes
  bool has_weights_in_memory() const { return has_weights_in_memory_; }
  int num_threads() const { return num_threads_; }

  OrtPointer<OrtIoBinding> new_binding() const;
  // Execute a step, or enqueue it on a GPU's stream. options may be null. Throws a Fault if an
  // operator fails, or if the weights' file was changed.
  void run(const OrtIoBinding& binding, const OrtRunOptions* options);

 private:
  void load(const SessionSettings& settings);
  void read_values();
  void read_metadata();

  const EngineDirectory& engine_;
  Device& device_;
  const OrtApi& api_;
  HeldFile weights_;
  OrtPointer<OrtEnv> environment_;
  OrtPointer<OrtSession> session_;
  GraphValues inputs_, outputs_;
  ONNXTensorElementDataType cache_type_ = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  int64_t min_slots_ = 1;
  bool has_weights_in_memory_ = false;
  int num_threads_ = 0;
};

}  // namespace bita
