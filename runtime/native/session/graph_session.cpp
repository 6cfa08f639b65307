#include "graph_session.h"

#include <algorithm>
#include <fstream>
#include <sstream>

#include "../base/files.h"
#include "../operators/ort.h"
#include "../operators/weight_memory.h"
#include "graph_fit.h"
#include "ort_library.h"
#include "threads.h"

extern "C" OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base);

namespace bita {

namespace {

constexpr const char* kOperators = "bita.operators";  // in manifests and graphs
constexpr const char* kOperatorsVersion =
    "3";  // version of the operators here, and of their weights' layout
constexpr const char* kMinSlots = "bita.least_slots";
constexpr const char* kWeightsFolder = "session.model_external_initializers_file_folder_path";

[[noreturn]] void fail(const std::string& message) { throw Fault(FaultKind::kEngine, message); }

// The first line of ONNX Runtime's message.
std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

std::string version_of(const EngineDirectory& engine, const char* name, const char* otherwise) {
  const auto& versions = engine.manifest.requires_versions;
  const auto found = versions.find(name);
  return found == versions.end() ? otherwise : found->second;
}

// The numbers at the start of a version: 1.23.2 -> 1, 23, 2.
std::vector<int64_t> numbers_of(const std::string& version) {
  std::vector<int64_t> found;
  for (size_t i = 0; i < version.size() && found.size() < 3;) {
    if (version[i] < '0' || version[i] > '9') {
      ++i;
      continue;
    }
    int64_t number = 0;
    for (int digits = 0; i < version.size() && version[i] >= '0' && version[i] <= '9'; ++i) {
      if (digits++ < 9) number = 10 * number + (version[i] - '0');
    }
    found.push_back(number);
  }
  return found;
}

[[noreturn]] void refuse_operators(const std::string& place, const std::string& version) {
  fail(place + ": " + kOperators + " is " + shown(version) + ", and this library has version " +
       kOperatorsVersion +
       " of the native operators: rebuild the engine, or take a newer library if it was built with "
       "a newer bita-edge");
}

void check_versions(const EngineDirectory& engine, const std::string& version) {
  const std::string least = version_of(engine, "onnxruntime", "0");
  if (numbers_of(version) < numbers_of(least)) {
    fail("engine " + text_of(engine.path) + " needs onnxruntime " + least + " or newer; " +
         version + " is here: install a newer one");
  }
  if (!engine.manifest.is_native()) return;
  const std::string operators = version_of(engine, kOperators, "1");
  if (operators != kOperatorsVersion) refuse_operators(text_of(engine.path), operators);
}

// Whether ONNX Runtime computes products of uint8 and int8 values exactly: on x86 only with VNNI.
bool multiplies_int8_exactly() {
#if defined(__x86_64__) || defined(__i386__)
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("flags", 0) != 0) continue;
    std::istringstream flags(line);
    for (std::string flag; flags >> flag;) {
      if (flag == "avx512_vnni" || flag == "avx_vnni") return true;
    }
    return false;
  }
  return false;
#else
  return true;
#endif
}

void check_processor(const EngineDirectory& engine) {
  if (version_of(engine, "processor", "") != "exact int8" || multiplies_int8_exactly()) return;
  fail("engine " + text_of(engine.path) +
       " has int8 weights for processors with VNNI; this one has none, and would give another "
       "text: rebuild it here: make engine MODEL=" +
       engine.manifest.model + " PRECISION=int8");
}

// The folder in which ONNX Runtime must look for the weights; empty if they are next to the graph.
// From 1.25 on it rejects links that lead out of the graph's directory.
std::string weights_folder(const EngineDirectory& engine) {
  std::error_code ignored;
  const fs::path weights = fs::canonical(engine.file(kWeightsFile), ignored);
  return weights.filename() == kWeightsFile ? weights.parent_path().string() : "";
}

GraphValue value_of(const OrtTypeInfo& info) {
  GraphValue value;
  const OrtTensorTypeAndShapeInfo* tensor = nullptr;
  check(ort().CastTypeInfoToTensorInfo(&info, &tensor));
  if (!tensor) return value;
  size_t count = 0;
  check(ort().GetTensorElementType(tensor, &value.type));
  check(ort().GetDimensionsCount(tensor, &count));
  value.shape.resize(count);
  check(ort().GetDimensions(tensor, value.shape.data(), count));
  return value;
}

// A string that an allocator of ONNX Runtime owns.
class OwnedText {
 public:
  OwnedText() { check(ort().GetAllocatorWithDefaultOptions(&allocator_)); }
  ~OwnedText() {
    if (!text_) return;
    if (OrtStatus* status = ort().AllocatorFree(allocator_, text_)) ort().ReleaseStatus(status);
  }
  OwnedText(const OwnedText&) = delete;
  OwnedText& operator=(const OwnedText&) = delete;
  OrtAllocator* allocator() { return allocator_; }
  char** place() { return &text_; }
  std::string text() const { return text_ ? text_ : ""; }

 private:
  OrtAllocator* allocator_ = nullptr;
  char* text_ = nullptr;
};

}  // namespace

GraphSession::GraphSession(const EngineDirectory& engine, Device& device,
                           const SessionSettings& settings, const Log& log)
    : engine_(engine),
      device_(device),
      api_(*ort_library(settings.onnxruntime_path).api),
      weights_(engine.file(kWeightsFile), engine.files.at(kWeightsFile).sha256) {
  if (device.is_host()) check_processor(engine);
  check_versions(engine, ort_version());
  load(settings);
  weights_.check_loaded();
  read_values();
  read_metadata();
  raise_faults(
      FaultKind::kEngine,
      text_of(engine.file(kGraphFile)) + " is not what the manifest says; rebuild the engine",
      graph_faults(engine.manifest, inputs_, outputs_));
  const auto cache = inputs_.find(engine.manifest.is_native() ? "past.0.pages" : "past.0.key");
  cache_type_ = cache->second.type;
  const char* place = !device.is_host()        ? "on a GPU"
                      : has_weights_in_memory_ ? "weights in huge pages"
                                               : "weights mapped";
  log(LogLevel::kInfo, "ONNX Runtime " + ort_version() + ", " + place);
}

void GraphSession::load(const SessionSettings& settings) {
  OrtEnv* environment = nullptr;
  check(api_.CreateEnv(ORT_LOGGING_LEVEL_FATAL, "bita", &environment));
  environment_.reset(environment);
  OrtSessionOptions* created = nullptr;
  check(api_.CreateSessionOptions(&created));
  const OrtPointer<OrtSessionOptions> options(created);
  num_threads_ = settings.num_threads ? settings.num_threads : default_threads();
  check(api_.SetIntraOpNumThreads(created, num_threads_));
  check(api_.SetSessionLogSeverityLevel(created, ORT_LOGGING_LEVEL_FATAL));
  device_.add_provider(created, text_of(engine_.path));
  const bool is_native = engine_.manifest.is_native();
  if (is_native) check(RegisterCustomOps(created, ort_library("").base));
  const std::string folder = weights_folder(engine_);
  if (!folder.empty()) check(api_.AddSessionConfigEntry(created, kWeightsFolder, folder.c_str()));
  const bool reads_ahead = is_native && !settings.maps_weights;
  if (reads_ahead) read_session_weights(engine_.file(kWeightsFile).c_str());
  OrtSession* session = nullptr;
  OrtStatus* status =
      device_.create_session(environment, engine_.file(kGraphFile).c_str(), created, &session);
  session_.reset(session);
  if (reads_ahead) has_weights_in_memory_ = take_session_weights();
  try {
    check(status);
  } catch (const std::runtime_error& error) {
    fail("ONNX Runtime " + ort_version() + " cannot load " + text_of(engine_.file(kGraphFile)) +
         ": " + first_line(error.what()) + "; rebuild the engine, or install a newer ONNX Runtime");
  }
}

void GraphSession::read_values() {
  for (const bool is_input : {true, false}) {
    size_t count = 0;
    check(is_input ? api_.SessionGetInputCount(session_.get(), &count)
                   : api_.SessionGetOutputCount(session_.get(), &count));
    for (size_t i = 0; i < count; ++i) {
      OwnedText name;
      OrtTypeInfo* info = nullptr;
      check(is_input
                ? api_.SessionGetInputName(session_.get(), i, name.allocator(), name.place())
                : api_.SessionGetOutputName(session_.get(), i, name.allocator(), name.place()));
      check(is_input ? api_.SessionGetInputTypeInfo(session_.get(), i, &info)
                     : api_.SessionGetOutputTypeInfo(session_.get(), i, &info));
      const OrtPointer<OrtTypeInfo> held(info);
      (is_input ? inputs_ : outputs_)[name.text()] = value_of(*info);
    }
  }
}

void GraphSession::read_metadata() {
  OrtModelMetadata* created = nullptr;
  check(api_.SessionGetModelMetadata(session_.get(), &created));
  const OrtPointer<OrtModelMetadata> metadata(created);
  const auto find = [&](const char* key) {
    OwnedText value;
    check(
        api_.ModelMetadataLookupCustomMetadataMap(created, value.allocator(), key, value.place()));
    return value.text();
  };
  const std::string graph = text_of(engine_.file(kGraphFile));
  if (engine_.manifest.is_native()) {
    const std::string version = find(kOperators);
    if (version != kOperatorsVersion) refuse_operators(graph, version);
  }
  const std::string text = find(kMinSlots);
  const int64_t capacity = engine_.manifest.capacity;
  const bool is_number = !text.empty() && text.size() <= 9 && text[0] != '0' &&
                         text.find_first_not_of("0123456789") == std::string::npos;
  if (is_number) min_slots_ = std::stoll(text);
  if ((!text.empty() && !is_number) || min_slots_ > capacity) {
    fail(graph + ": " + kMinSlots + " is " + shown(text) + ", not 1 to " +
         std::to_string(capacity) + "; rebuild the engine");
  }
}

OrtPointer<OrtIoBinding> GraphSession::new_binding() const {
  OrtIoBinding* binding = nullptr;
  check(api_.CreateIoBinding(session_.get(), &binding));
  return OrtPointer<OrtIoBinding>(binding);
}

void GraphSession::run(const OrtIoBinding& binding, const OrtRunOptions* options) {
  weights_.check();
  try {
    check(device_.run(session_.get(), options, &binding));
  } catch (const std::runtime_error& error) {
    fail("ONNX Runtime " + ort_version() + " cannot run a step of engine " + text_of(engine_.path) +
         ": " + first_line(error.what()) + "; rebuild the engine");
  }
  if (!has_weights_in_memory_)
    weights_.check();  // otherwise the check before the next step is soon enough
}

}  // namespace bita
