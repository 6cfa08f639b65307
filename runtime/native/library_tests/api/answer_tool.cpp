// Answers requests through the C interface: answer_tool ONNXRUNTIME ENGINE [OPTIONS]
//
// Requests and replies are JSON objects, one per line. Fields of a request:
//   "session": name of the session, which is created on first use
//   "text", "token_ids" or "messages": the prompt
//   "options": fields of bita_answer_options
//   "tree", "adapter": files for a new session
//   "fork": name of the session that a new one continues
//   "clear", "free": true to clear or free the session
//   "cancel_after": number of steps
// A reply has token_ids, text, finish, seed, steps (the number of tokens of each) and stats, or
// status and error.
#include <bita/bita.h>

#include <cstdio>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using Json = nlohmann::json;

class Failure : public std::runtime_error {
 public:
  Failure(bita_status status, const std::string& message)
      : std::runtime_error(message), status_(status) {}
  bita_status status() const { return status_; }

 private:
  bita_status status_;
};

void check(bita_status status) {
  if (status < 0) throw Failure(status, bita_error());
}

// Options of an answer, and the arrays that they point to.
struct AnswerOptions {
  explicit AnswerOptions(const Json& given) {
    options.max_new_tokens = given.value("max_new_tokens", int64_t{0});
    stops = given.value("stop", stops);
    for (const std::string& stop : stops) stop_pointers.push_back(stop.c_str());
    options.stops = stop_pointers.data();
    options.num_stops = stops.size();
    stop_token_ids = given.value("stop_token_ids", stop_token_ids);
    options.stop_token_ids = stop_token_ids.data();
    options.num_stop_token_ids = stop_token_ids.size();
    options.ignore_eos = given.value("ignore_eos", false);
    options.has_seed = given.contains("seed");
    options.seed = given.value("seed", uint64_t{0});
    options.temperature = given.value("temperature", 0.0);
    options.top_k = given.value("top_k", int64_t{0});
    options.top_p = given.value("top_p", 0.0);
    options.min_p = given.value("min_p", 0.0);
    options.repetition_penalty = given.value("repetition_penalty", 0.0);
    options.presence_penalty = given.value("presence_penalty", 0.0);
    options.frequency_penalty = given.value("frequency_penalty", 0.0);
    const Json bias = given.value("logit_bias", Json::object());
    for (const auto& [token, value] : bias.items()) {
      bias_ids.push_back(std::stoi(token));
      biases.push_back(value.get<double>());
    }
    options.bias_token_ids = bias_ids.data();
    options.biases = biases.data();
    options.num_biases = biases.size();
    options.timeout_s = given.value("timeout_s", 0.0);
    options.drafts = given.value("drafts", 0);
    options.logprobs = given.contains("logprobs");
    options.num_best = given.value("logprobs", 0);
  }

  bita_answer_options options = BITA_ANSWER_OPTIONS_INIT;
  std::vector<std::string> stops;
  std::vector<const char*> stop_pointers;
  std::vector<int32_t> stop_token_ids, bias_ids;
  std::vector<double> biases;
};

class Tool {
 public:
  explicit Tool(bita_engine* engine) : engine_(engine) {}
  ~Tool() {
    for (const auto& [name, session] : sessions_) bita_session_free(session);
  }

  Json answer(const Json& request) {
    bita_session* session = session_of(request);
    if (request.value("clear", false)) check(bita_session_clear(session));
    if (request.value("free", false)) {
      bita_session_free(session);
      sessions_.erase(request.value("session", ""));
      return Json::object();
    }
    if (!start(session, request)) return Json::object();
    return finish(session, request.value("cancel_after", int64_t{-1}));
  }

 private:
  bita_session* session_of(const Json& request) {
    const std::string name = request.value("session", "");
    bita_session*& session = sessions_[name];
    if (session) return session;
    if (request.contains("fork")) {
      check(bita_session_fork(sessions_[request["fork"].get<std::string>()], &session));
      return session;
    }
    const std::string tree = request.value("tree", ""), adapter = request.value("adapter", "");
    bita_session_options options = BITA_SESSION_OPTIONS_INIT;
    if (!tree.empty()) options.tree_path = tree.c_str();
    if (!adapter.empty()) options.adapter_path = adapter.c_str();
    options.overflow = request.value("overflow", 0);
    check(bita_session_new(engine_, &options, &session));
    return session;
  }

  static bool start(bita_session* session, const Json& request) {
    const AnswerOptions options(request.value("options", Json::object()));
    if (request.contains("text")) {
      const std::string text = request["text"];
      const bool adds = request.value("add_special_tokens", true);
      check(bita_start_text(session, text.c_str(), adds, &options.options));
    } else if (request.contains("token_ids")) {
      const std::vector<int32_t> ids = request["token_ids"];
      check(bita_start_tokens(session, ids.data(), ids.size(), &options.options));
    } else if (request.contains("messages")) {
      std::vector<std::string> texts;
      for (const Json& message : request["messages"]) {
        texts.push_back(message["role"]);
        texts.push_back(message["content"]);
      }
      std::vector<bita_message> messages;
      for (size_t i = 0; i < texts.size(); i += 2) {
        messages.push_back({texts[i].c_str(), texts[i + 1].c_str()});
      }
      check(bita_start_chat(session, messages.data(), messages.size(), &options.options));
    } else {
      return false;
    }
    return true;
  }

  static Json finish(bita_session* session, int64_t cancel_after) {
    static const char* const kNames[] = {"",         "eos",     "stop",     "length",
                                         "capacity", "timeout", "cancelled"};
    std::vector<int32_t> ids;
    std::string text;
    Json steps = Json::array(), logprobs = Json::array();
    bita_step step = BITA_STEP_INIT;
    for (;;) {
      if (cancel_after-- == 0) bita_cancel(session);
      const bita_status status = bita_next(session, &step);
      check(status);
      if (status == BITA_DONE) break;
      ids.insert(ids.end(), step.token_ids, step.token_ids + step.num_token_ids);
      text.append(step.text, step.num_bytes);
      steps.push_back(step.num_token_ids);
      for (size_t i = 0; step.logprobs && i < step.num_token_ids; ++i) {
        Json best = Json::array();
        for (size_t j = i * step.num_best; j < (i + 1) * step.num_best; ++j) {
          best.push_back({step.best_token_ids[j], step.best_logprobs[j]});
        }
        logprobs.push_back({step.token_ids[i], step.logprobs[i], best});
      }
    }
    bita_stats stats = {};
    stats.struct_size = sizeof stats;
    check(bita_session_stats(session, &stats));
    return {{"token_ids", ids},
            {"text", text},
            {"finish", kNames[step.finish]},
            {"seed", step.seed},
            {"num_dropped", step.num_dropped},
            {"steps", steps},
            {"logprobs", logprobs},
            {"stats",
             {{"num_steps", stats.num_steps},
              {"num_tokens", stats.num_tokens},
              {"num_prompt_tokens", stats.num_prompt_tokens},
              {"num_reused_tokens", stats.num_reused_tokens},
              {"num_accepted", stats.num_accepted},
              {"num_from_text", stats.num_from_text},
              {"num_guarded_steps", stats.num_guarded_steps},
              {"prompt_ms", stats.prompt_ms},
              {"step_ms", stats.step_ms},
              {"backend_ms", stats.backend_ms},
              {"peak_memory_bytes", stats.peak_memory_bytes},
              {"peak_device_bytes", stats.peak_device_bytes}}}};
  }

  bita_engine* engine_;
  std::map<std::string, bita_session*> sessions_;
};

Json reply(Tool& tool, const std::string& line) {
  try {
    return tool.answer(Json::parse(line));
  } catch (const Failure& failure) {
    return {{"status", failure.status()}, {"error", failure.what()}};
  }
}

}  // namespace

int main(int count, char** arguments) try {
  if (count < 3) return 2;
  bita_engine_options options = BITA_ENGINE_OPTIONS_INIT;
  options.onnxruntime_path = arguments[1];
  const Json given = count > 3 ? Json::parse(arguments[3]) : Json::object();
  options.num_threads = given.value("num_threads", 0);
  options.check_hashes = given.value("check_hashes", false);
  options.map_weights = given.value("map_weights", false);
  options.token_ids_only = given.value("token_ids_only", false);
  options.cache_bytes = given.value("cache_bytes", int64_t{0});
  const std::string backend = given.value("backend", "");
  if (!backend.empty()) options.backend = backend.c_str();
  options.device = given.value("device", 0);
  options.cuda_graphs = given.value("cuda_graphs", 0);
  bita_engine* engine = nullptr;
  const bita_status status = bita_engine_open(arguments[2], &options, &engine);
  if (status < 0) {
    std::cout << Json{{"status", status}, {"error", bita_error()}} << "\n";
    return 1;
  }
  {
    Tool tool(engine);
    for (std::string line; std::getline(std::cin, line);) {
      std::cout << reply(tool, line).dump() << "\n" << std::flush;
    }
  }
  bita_engine_free(engine);
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
