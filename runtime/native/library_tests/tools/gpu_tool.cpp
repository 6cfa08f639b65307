// Runs an engine for a GPU without a GPU, for tests: a stand-in for libcudart provides the memory
// and the streams, and ONNX Runtime computes the steps on the host.
//
//   gpu_tool ONNXRUNTIME LIBCUDART ENGINE '{"device": 0, "cache_bytes": 0, "provider": false}'
//
// Settings: "library" is another libcudart; "provider" requests ONNX Runtime's CUDA provider.
// Requests and replies are JSON objects, one per line. Fields of a request:
//   "session": name of the session, which is created on first use
//   "token_ids": the prompt
//   "options": max_new_tokens, temperature, seed
//   "tree", "adapter": files for a new session
//   "fork": name of the session that a new one continues
//   "free": true to free the session
//   "max_steps": number of steps after which the answer is left
//   "limit_bytes": size of the GPU's memory from now on
// The last line reports how many allocations are left after everything is freed.
#include <dlfcn.h>

#include <functional>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>

#include "../../operators/ort.h"
#include "../../session/session.h"

namespace bita {
namespace {

using Json = nlohmann::json;

// The stand-in's own functions.
class StandIn {
 public:
  explicit StandIn(const std::string& path) : handle_(dlopen(path.c_str(), RTLD_NOW)) {}
  template <class... Values>
  int call(const char* name, Values... values) const {
    return reinterpret_cast<int (*)(Values...)>(dlsym(handle_, name))(values...);
  }

 private:
  void* handle_;
};

// A device that delays copies as long as CUDA may: until a step needs them, or a thread waits.
class OnHost : public CudaDevice {
 public:
  OnHost(const CudaSettings& settings, bool asks_for_provider, int64_t& num_graphs)
      : CudaDevice(settings), asks_for_provider_(asks_for_provider), num_graphs_(num_graphs) {}

  void copy(void* target, const void* source, size_t num_bytes) override {
    late_.emplace_back([=] { CudaDevice::copy(target, source, num_bytes); });
  }
  void copy_rows(void* target, size_t target_pitch, const void* source, size_t source_pitch,
                 size_t width, size_t height) override {
    late_.emplace_back(
        [=] { CudaDevice::copy_rows(target, target_pitch, source, source_pitch, width, height); });
  }
  void wait() override {
    flush();
    CudaDevice::wait();
  }
  void add_provider(OrtSessionOptions* options, const std::string& engine) override {
    if (asks_for_provider_) CudaDevice::add_provider(options, engine);
  }
  OrtPointer<OrtRunOptions> run_options(bool captures) override {
    num_graphs_ += captures;
    return CudaDevice::run_options(captures);
  }
  OrtStatus* run(OrtSession* session, const OrtRunOptions* options,
                 const OrtIoBinding* binding) override {
    flush();
    return CudaDevice::run(session, options, binding);
  }

 protected:
  OrtPointer<OrtMemoryInfo> memory_info() const override {
    OrtMemoryInfo* info = nullptr;
    check(ort().CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &info));
    return OrtPointer<OrtMemoryInfo>(info);
  }

 private:
  void flush() {
    for (const auto& each : late_) each();
    late_.clear();
  }

  const bool asks_for_provider_;
  int64_t& num_graphs_;
  std::vector<std::function<void()>> late_;
};

Options options_of(const Json& given) {
  Options options;
  options.max_new_tokens = given.value("max_new_tokens", int64_t{256});
  options.temperature = given.value("temperature", 0.0);
  options.ignores_eos = given.value("ignore_eos", false);
  if (given.contains("seed")) options.seed = given["seed"].get<uint64_t>();
  return options;
}

class Tool {
 public:
  Tool(std::shared_ptr<LoadedEngine> engine, const StandIn& stand_in)
      : engine_(std::move(engine)), stand_in_(stand_in) {}

  Json answer(const Json& request) {
    if (request.contains("limit_bytes")) {
      stand_in_.call("host_cuda_set_limit", request["limit_bytes"].get<size_t>());
    }
    const std::string name = request.value("session", "");
    if (request.value("free", false)) {
      sessions_.erase(name);
      return Json::object();
    }
    Session& session = session_of(name, request);
    if (!request.contains("token_ids")) return Json::object();
    session.start_tokens(request["token_ids"].get<std::vector<int64_t>>(),
                         options_of(request.value("options", Json::object())));
    std::vector<int32_t> ids;
    StepResult result;
    for (int64_t steps = request.value("max_steps", int64_t{-1}); steps != 0; --steps) {
      if (!session.step(result)) break;
      ids.insert(ids.end(), result.token_ids.begin(), result.token_ids.end());
    }
    const Stats& stats = session.stats();
    return {{"token_ids", ids},
            {"num_steps", stats.num_steps},
            {"num_reused_tokens", stats.num_reused_tokens},
            {"peak_device_bytes", engine_->peak_device_bytes()}};
  }

 private:
  Session& session_of(const std::string& name, const Json& request) {
    std::unique_ptr<Session>& session = sessions_[name];
    if (session) return *session;
    if (request.contains("fork")) {
      session = sessions_.at(request["fork"].get<std::string>())->fork();
    } else {
      TextSettings settings;
      settings.tree_path = request.value("tree", "");
      settings.adapter_path = request.value("adapter", "");
      session = std::make_unique<Session>(engine_, settings);
    }
    return *session;
  }

  std::shared_ptr<LoadedEngine> engine_;
  const StandIn& stand_in_;
  std::map<std::string, std::unique_ptr<Session>> sessions_;
};

EngineSettings settings_of(char** arguments, const Json& given, int64_t& num_graphs) {
  EngineSettings settings;
  settings.session.num_threads = 1;
  settings.session.onnxruntime_path = arguments[1];
  settings.is_without_text = true;
  settings.cache_bytes = given.value("cache_bytes", int64_t{1} << 30);
  settings.cuda.device = given.value("device", 0);
  settings.cuda.library = given.value("library", arguments[2]);
  const bool asks_for_provider = given.value("provider", false);
  settings.new_device = [cuda = settings.cuda, asks_for_provider, &num_graphs] {
    return std::make_unique<OnHost>(cuda, asks_for_provider, num_graphs);
  };
  return settings;
}

void serve(char** arguments, const Json& given, const StandIn& stand_in) {
  int64_t num_graphs = 0;
  auto engine =
      std::make_shared<LoadedEngine>(arguments[3], settings_of(arguments, given, num_graphs));
  Tool tool(std::move(engine), stand_in);
  std::cout << "{}\n" << std::flush;
  for (std::string line; std::getline(std::cin, line);) {
    Json reply;
    try {
      reply = tool.answer(Json::parse(line));
    } catch (const std::exception& error) {
      reply = {{"error", error.what()}};
    }
    int device = -1;
    stand_in.call("cudaGetDevice", &device);
    reply["current_device"] = device;
    reply["num_graphs"] = num_graphs;
    std::cout << reply.dump() << "\n" << std::flush;
  }
}

int run(char** arguments, const Json& given) {
  const StandIn stand_in(arguments[2]);
  stand_in.call("host_cuda_set_devices", given.value("num_devices", 1));
  stand_in.call("host_cuda_set_version", given.value("version", 13000));
  stand_in.call("host_cuda_set_limit", given.value("limit_bytes", size_t{1} << 40));
  try {
    serve(arguments, given, stand_in);
  } catch (const std::exception& error) {
    std::cout << Json{{"error", error.what()}} << "\n";
  }
  std::cout << Json{{"num_live", stand_in.call("host_cuda_num_live")}} << "\n";
  return 0;
}

}  // namespace
}  // namespace bita

int main(int count, char** arguments) try {
  if (count < 5) return 2;
  return bita::run(arguments, bita::Json::parse(arguments[4]));
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
