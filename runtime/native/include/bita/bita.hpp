// bita for C++17: owning classes, and exceptions instead of statuses. This header wraps bita.h,
// whose comments define what everything means.
//
//   bita::Engine engine("engines/smollm2-135m-instruct-int4");
//   bita::Session session(engine);
//   session.start_chat({{"user", "How do plants make food?"}});
//   while (auto step = session.next()) std::cout << step->text << std::flush;
#ifndef BITA_BITA_HPP
#define BITA_BITA_HPP

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bita.h"

namespace bita {

// The error of a failed call. `what()` is the message of bita_error().
class Error : public std::runtime_error {
 public:
  Error(bita_status status, const std::string& message)
      : std::runtime_error(message), status_(status) {}
  bita_status status() const { return status_; }  // a BITA_ERROR_* constant

 private:
  bita_status status_;
};

// Throw an Error if `status` is an error.
inline void check(bita_status status) {
  if (status < 0) throw Error(status, bita_error());
}

struct Message {
  std::string role, content;  // role: "system", "user" or "assistant"
};

// Options of an engine, see bita_engine_options.
struct EngineOptions {
  int num_threads = 0;           // threads per step; 0: one per physical core
  bool check_hashes = false;     // verify the hashes of the weights before loading
  bool map_weights = false;      // map the weights instead of reading them into huge pages
  bool token_ids_only = false;   // load no tokenizer: steps have no text
  std::int64_t cache_bytes = 0;  // KV cache beyond one text of full length; 0: 256 MB
  std::string onnxruntime_path;  // empty: searched for
  // Called in threads that call the engine; must not throw. Empty: no logging.
  std::function<void(int level, const char* message)> log;
  int log_level = BITA_LOG_DEBUG;  // lowest level that is logged
  std::string backend;             // "ort-cpu" or "ort-cuda"; empty: the engine's own
  int device = 0;                  // index of the GPU
  bool cuda_graphs = true;         // capture decode steps as CUDA graphs
};

struct SessionOptions {
  std::string tree_path, adapter_path;  // empty: the engine's own
  bool drops_oldest = false;            // drop the oldest messages when the cache is too small
};

// Options of an answer, see bita_answer_options. The defaults are those of Python.
struct AnswerOptions {
  std::int64_t max_new_tokens = 256;
  std::vector<std::string> stops;                           // at most 16; not part of the text
  std::vector<std::int32_t> stop_token_ids;                 // besides the model's EOS tokens
  bool ignore_eos = false;                                  // continue after the model's EOS tokens
  std::optional<std::uint64_t> seed;                        // none: a new seed per answer, see Step
  double temperature = 0.0;                                 // 0: greedy
  std::int64_t top_k = 0;                                   // 0: all tokens
  double top_p = 1.0;                                       // 1: all tokens
  double min_p = 0.0;                                       // 0: all tokens
  double repetition_penalty = 1.0;                          // 1: none
  double presence_penalty = 0.0;                            // 0: none
  double frequency_penalty = 0.0;                           // 0: none
  std::vector<std::pair<std::int32_t, double>> logit_bias;  // token id, value to add
  double timeout_s = 0.0;                                   // seconds; 0: no limit
  int drafts = BITA_DRAFTS_ENGINE;                          // does not change the text
  // Report each token's log-probability, and those of this many best tokens at its position, 0 to
  // 20. none: no log-probabilities.
  std::optional<int> logprobs;
};

// Result of a step. `text` and the arrays are valid until the next call on the session.
struct Step {
  std::string_view text;                    // new text, whole characters
  const std::int32_t* token_ids = nullptr;  // accepted tokens
  std::size_t num_token_ids = 0;            // 0 while a long prompt is being read
  bita_finish finish = BITA_FINISH_NONE;    // set in the last step
  std::uint64_t seed = 0;                   // seed with which the same answer can be made again
  std::int64_t num_dropped = 0;             // messages left out of the prompt
  const double* logprobs = nullptr;         // of each token; null if not requested
  const std::int32_t* best_token_ids = nullptr;  // num_best ids for each token, best first
  const double* best_logprobs = nullptr;         // of each of best_token_ids
  std::size_t num_best = 0;                      // best tokens per position
};

// A loaded engine. Copies share it; any number of threads may use it at once. The member functions
// throw Error.
class Engine {
 public:
  // Check and load the engine in `directory`.
  explicit Engine(const std::string& directory, EngineOptions options = {})
      : log_(options.log ? std::make_shared<Log>(std::move(options.log)) : nullptr) {
    bita_engine_options given = BITA_ENGINE_OPTIONS_INIT;
    given.num_threads = options.num_threads;
    given.check_hashes = options.check_hashes;
    given.map_weights = options.map_weights;
    given.token_ids_only = options.token_ids_only;
    given.cache_bytes = options.cache_bytes;
    if (!options.onnxruntime_path.empty())
      given.onnxruntime_path = options.onnxruntime_path.c_str();
    if (log_) {
      given.log = [](void* context, std::int32_t level, const char* message) {
        (*static_cast<Log*>(context))(level, message);
      };
      given.log_context = log_.get();
      given.log_level = options.log_level;
    }
    if (!options.backend.empty()) given.backend = options.backend.c_str();
    given.device = options.device;
    given.cuda_graphs = options.cuda_graphs ? BITA_CUDA_GRAPHS_ON : BITA_CUDA_GRAPHS_OFF;
    bita_engine* opened = nullptr;
    check(bita_engine_open(directory.c_str(), &given, &opened));
    engine_.reset(opened, bita_engine_free);
  }

  bita_engine* get() const { return engine_.get(); }

  // Return a description of the engine. Its strings are valid as long as the engine.
  bita_engine_info info() const {
    bita_engine_info info = BITA_ENGINE_INFO_INIT;
    check(bita_engine_describe(get(), &info));
    return info;
  }

  // Encode text as token ids. Pass add_special_tokens false for a rendered chat template.
  std::vector<std::int32_t> encode(std::string_view text, bool add_special_tokens = true) const {
    std::vector<std::int32_t> ids(text.size() + 16);
    std::size_t count = 0;
    const auto encode = [&] {
      return bita_encode(get(), text.data(), text.size(), add_special_tokens, ids.data(),
                         ids.size(), &count);
    };
    bita_status status = encode();
    if (status == BITA_ERROR_SIZE) {
      ids.resize(count);
      status = encode();
    }
    check(status);
    ids.resize(count);
    return ids;
  }

  // Decode token ids to text.
  std::string decode(const std::vector<std::int32_t>& ids) const {
    return text_of(8 * ids.size() + 1, [&](char* text, std::size_t capacity, std::size_t* size) {
      return bita_decode(get(), ids.data(), ids.size(), text, capacity, size);
    });
  }

  // Render messages with the model's chat template.
  std::string render(const std::vector<Message>& messages,
                     bool add_generation_prompt = true) const {
    const std::vector<bita_message> given = pointers(messages);
    return text_of(4096, [&](char* text, std::size_t capacity, std::size_t* size) {
      return bita_render(get(), given.data(), given.size(), add_generation_prompt, text, capacity,
                         size);
    });
  }

  // Return C messages that point into `messages`.
  static std::vector<bita_message> pointers(const std::vector<Message>& messages) {
    std::vector<bita_message> found;
    found.reserve(messages.size());
    for (const Message& each : messages) found.push_back({each.role.c_str(), each.content.c_str()});
    return found;
  }

 private:
  using Log = std::function<void(int, const char*)>;

  // Return a text of unknown size. `ask` is called a second time if the first buffer is too small.
  template <class Ask>
  static std::string text_of(std::size_t capacity, Ask ask) {
    std::string text(capacity, '\0');
    std::size_t size = 0;
    bita_status status = ask(text.data(), text.size(), &size);
    if (status == BITA_ERROR_SIZE) {
      text.resize(size + 1);
      status = ask(text.data(), text.size(), &size);
    }
    check(status);
    text.resize(size);
    return text;
  }

  std::shared_ptr<Log> log_;
  std::shared_ptr<bita_engine> engine_;
};

// The state of one text: its cache, its conversation, and the answer in progress. For one thread at
// a time, except for `cancel`. Holds a reference to the engine. The member functions throw Error.
class Session {
 public:
  explicit Session(const Engine& engine, const SessionOptions& options = {}) : engine_(engine) {
    bita_session_options given = BITA_SESSION_OPTIONS_INIT;
    if (!options.tree_path.empty()) given.tree_path = options.tree_path.c_str();
    if (!options.adapter_path.empty()) given.adapter_path = options.adapter_path.c_str();
    given.overflow = options.drops_oldest ? BITA_OVERFLOW_DROP_OLDEST : BITA_OVERFLOW_REFUSE;
    bita_session* made = nullptr;
    check(bita_session_new(engine.get(), &given, &made));
    session_.reset(made);
  }

  bita_session* get() const { return session_.get(); }
  const Engine& engine() const { return engine_; }

  // Create a second session that continues from the same point. Cancels an answer in progress.
  Session fork() {
    bita_session* other = nullptr;
    check(bita_session_fork(get(), &other));
    return Session(engine_, other);
  }

  // Start an answer that continues `text`.
  void start_text(const std::string& text, const AnswerOptions& options = {},
                  bool add_special_tokens = true) {
    const Given given(options);
    check(bita_start_text(get(), text.c_str(), add_special_tokens, &given.options));
  }

  // Start an answer that continues token ids.
  void start_tokens(const std::vector<std::int32_t>& ids, const AnswerOptions& options = {}) {
    const Given given(options);
    check(bita_start_tokens(get(), ids.data(), ids.size(), &given.options));
  }

  // Add messages to the conversation and start the answer to it.
  void start_chat(const std::vector<Message>& messages, const AnswerOptions& options = {}) {
    const Given given(options);
    const std::vector<bita_message> pointers = Engine::pointers(messages);
    check(bita_start_chat(get(), pointers.data(), pointers.size(), &given.options));
  }

  // Run a step and return its result, or none once the answer has ended and been returned.
  std::optional<Step> next() {
    bita_step found = BITA_STEP_INIT;
    const bita_status status = bita_next(get(), &found);
    check(status);
    if (status == BITA_DONE) return std::nullopt;
    return Step{std::string_view(found.text, found.num_bytes),
                found.token_ids,
                found.num_token_ids,
                found.finish,
                found.seed,
                found.num_dropped,
                found.logprobs,
                found.best_token_ids,
                found.best_logprobs,
                found.num_best};
  }

  // Run the remaining steps of the answer and return their text.
  std::string rest() {
    std::string text;
    while (const std::optional<Step> step = next()) text += step->text;
    return text;
  }

  // End the answer in progress before its next step. Any thread and any signal handler may call
  // this.
  void cancel() noexcept { bita_cancel(get()); }
  // Begin a new conversation.
  void clear() { check(bita_session_clear(get())); }

  // Return counters and times over all answers of the session.
  bita_stats stats() const {
    bita_stats stats = {};
    stats.struct_size = sizeof stats;
    check(bita_session_stats(get(), &stats));
    return stats;
  }

 private:
  struct Free {
    void operator()(bita_session* session) const { bita_session_free(session); }
  };

  // Options for C, and the arrays that they point to.
  struct Given {
    explicit Given(const AnswerOptions& from) {
      options.max_new_tokens = from.max_new_tokens;
      for (const std::string& stop : from.stops) stops.push_back(stop.c_str());
      options.stops = stops.data();
      options.num_stops = stops.size();
      options.stop_token_ids = from.stop_token_ids.data();
      options.num_stop_token_ids = from.stop_token_ids.size();
      options.ignore_eos = from.ignore_eos;
      options.has_seed = from.seed.has_value();
      options.seed = from.seed.value_or(0);
      options.temperature = from.temperature;
      options.top_k = from.top_k;
      options.top_p = from.top_p;
      options.min_p = from.min_p;
      options.repetition_penalty = from.repetition_penalty;
      options.presence_penalty = from.presence_penalty;
      options.frequency_penalty = from.frequency_penalty;
      for (const auto& [token, bias] : from.logit_bias) {
        bias_ids.push_back(token);
        biases.push_back(bias);
      }
      options.bias_token_ids = bias_ids.data();
      options.biases = biases.data();
      options.num_biases = biases.size();
      options.timeout_s = from.timeout_s;
      options.drafts = from.drafts;
      options.logprobs = from.logprobs.has_value();
      options.num_best = from.logprobs.value_or(0);
    }

    bita_answer_options options = BITA_ANSWER_OPTIONS_INIT;
    std::vector<const char*> stops;
    std::vector<std::int32_t> bias_ids;
    std::vector<double> biases;
  };

  Session(Engine engine, bita_session* made) : engine_(std::move(engine)), session_(made) {}

  Engine engine_;  // keeps the engine loaded
  std::unique_ptr<bita_session, Free> session_;
};

}  // namespace bita

#endif
