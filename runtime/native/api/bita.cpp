// The C interface: no exception leaves it, and every fault becomes a status and a message.
#define BITA_BUILDS 1
#include "bita/bita.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#include "../session/ort_library.h"
#include "../session/session.h"

struct bita_engine {
  std::shared_ptr<bita::LoadedEngine> loaded;
  std::string chat_reason, onnxruntime;
};

struct bita_session {
  std::unique_ptr<bita::Session> session;
  bita::StepResult result;  // which the last step's pointers look at
};

namespace {

using bita::Fault;
using bita::FaultKind;

thread_local std::string last_error;

bita_status status_of(FaultKind kind) {
  switch (kind) {
    case FaultKind::kEngine:
      return BITA_ERROR_ENGINE;
    case FaultKind::kAdapter:
      return BITA_ERROR_ADAPTER;
    case FaultKind::kTree:
      return BITA_ERROR_TREE;
    case FaultKind::kPrompt:
      return BITA_ERROR_PROMPT;
    case FaultKind::kUse:
      return BITA_ERROR_USE;
    default:
      return BITA_ERROR_SYSTEM;
  }
}

bita_status failed(bita_status status, const char* message) noexcept {
  try {
    last_error = message;
  } catch (...) {
    last_error.clear();  // no memory for the message
  }
  return status;
}

// Run what may throw, and turn what it throws into a status.
template <class Work>
bita_status guarded(Work work) noexcept {
  try {
    return work();
  } catch (const Fault& fault) {
    return failed(status_of(fault.kind()), fault.what());
  } catch (const std::bad_alloc&) {
    return failed(BITA_ERROR_SYSTEM, "there is not enough memory");
  } catch (const std::exception& error) {
    return failed(BITA_ERROR_SYSTEM, error.what());
  } catch (...) {
    return failed(BITA_ERROR_SYSTEM, "an unknown error");
  }
}

[[noreturn]] void misused(const std::string& message) { throw Fault(FaultKind::kUse, message); }

template <class T>
void need(T* pointer, const char* name) {
  if (!pointer) misused(std::string(name) + " is NULL");
}

// The caller's options, with defaults for fields that its header did not have.
template <class Options>
Options completed(const Options* given, const Options& defaults, const char* name) {
  Options options = defaults;
  if (!given) return options;
  const size_t size = given->struct_size;
  if (size < sizeof(size_t) || size > (1u << 16)) {
    misused(std::string(name) + ".struct_size is " + std::to_string(size) +
            "; begin with the header's INIT macro for it");
  }
  std::memcpy(&options, given, std::min(size, sizeof(Options)));
  options.struct_size = sizeof(Options);
  return options;
}

// Fill a caller's struct as far as its header knows it.
template <class Result>
void give(const Result& filled, Result* target, const char* name) {
  need(target, name);
  const size_t size = target->struct_size;
  if (size < sizeof(size_t) || size > (1u << 16)) {
    misused(std::string(name) + "->struct_size is " + std::to_string(size) +
            "; set it to the size of the struct");
  }
  const size_t known = std::min(size, sizeof(Result));
  std::memcpy(reinterpret_cast<char*>(target) + sizeof(size_t),
              reinterpret_cast<const char*>(&filled) + sizeof(size_t), known - sizeof(size_t));
}

std::string text_or_empty(const char* text) { return text ? text : ""; }

int32_t checked_choice(int32_t value, int32_t most, const char* name) {
  if (value < 0 || value > most) {
    misused(std::string(name) + " is " + std::to_string(value) + ", not 0 to " +
            std::to_string(most));
  }
  return value;
}

bita::EngineSettings settings_of(const bita_engine_options& options) {
  bita::EngineSettings settings;
  if (options.num_threads < 0 || options.num_threads > 1024) {
    misused("num_threads is " + std::to_string(options.num_threads) + ", not 0 to 1024");
  }
  if (options.cache_bytes < 0) {
    misused("cache_bytes is " + std::to_string(options.cache_bytes) + ", not 0 or more");
  }
  settings.session.num_threads = options.num_threads;
  settings.session.maps_weights = options.map_weights;
  settings.session.onnxruntime_path = text_or_empty(options.onnxruntime_path);
  settings.checks_hashes = options.check_hashes;
  settings.is_without_text = options.token_ids_only;
  if (options.cache_bytes) settings.cache_bytes = options.cache_bytes;
  if (options.log) {
    const auto level = checked_choice(options.log_level, BITA_LOG_WARNING, "log_level");
    const auto write = [log = options.log, context = options.log_context](
                           bita::LogLevel at, const std::string& message) {
      log(context, static_cast<int32_t>(at), message.c_str());
    };
    settings.log = bita::Log(write, static_cast<bita::LogLevel>(level));
  }
  return settings;
}

bita::Options options_of(const bita_answer_options* given) {
  const bita_answer_options from =
      completed(given, bita_answer_options BITA_ANSWER_OPTIONS_INIT, "options");
  bita::Options options;
  if (from.max_new_tokens) options.max_new_tokens = from.max_new_tokens;
  if (from.num_stops) need(from.stops, "options.stops");
  for (size_t i = 0; i < from.num_stops; ++i) {
    need(from.stops[i], "options.stops[i]");
    options.stops.emplace_back(from.stops[i]);
  }
  if (from.num_stop_token_ids) need(from.stop_token_ids, "options.stop_token_ids");
  options.stop_token_ids.assign(from.stop_token_ids, from.stop_token_ids + from.num_stop_token_ids);
  options.ignores_eos = from.ignore_eos;
  if (from.has_seed) options.seed = from.seed;
  options.temperature = from.temperature;
  options.top_k = from.top_k;
  if (from.top_p != 0) options.top_p = from.top_p;
  options.min_p = from.min_p;
  if (from.repetition_penalty != 0) options.repetition_penalty = from.repetition_penalty;
  options.presence_penalty = from.presence_penalty;
  options.frequency_penalty = from.frequency_penalty;
  if (from.num_biases) {
    need(from.bias_token_ids, "options.bias_token_ids");
    need(from.biases, "options.biases");
  }
  for (size_t i = 0; i < from.num_biases; ++i) {
    options.logit_bias.emplace_back(from.bias_token_ids[i], from.biases[i]);
  }
  if (from.timeout_s != 0) options.timeout_s = from.timeout_s;
  options.drafts = static_cast<bita::DraftPolicy>(
      checked_choice(from.drafts, BITA_DRAFTS_OFF, "options.drafts"));
  return options;
}

std::vector<bita::ChatMessage> messages_of(const bita_message* messages, size_t count) {
  if (count) need(messages, "messages");
  std::vector<bita::ChatMessage> found;
  for (size_t i = 0; i < count; ++i) {
    need(messages[i].role, "messages[i].role");
    need(messages[i].content, "messages[i].content");
    found.push_back({messages[i].role, messages[i].content});
  }
  return found;
}

// Copy a text and a zero into a caller's buffer.
bita_status give_text(const std::string& text, char* buffer, size_t capacity, size_t* num_bytes) {
  if (num_bytes) *num_bytes = text.size();
  if (capacity <= text.size()) {
    const std::string message = "the text has " + std::to_string(text.size()) +
                                " bytes and a zero, the buffer " + std::to_string(capacity);
    return failed(BITA_ERROR_SIZE, message.c_str());
  }
  need(buffer, "text");
  std::memcpy(buffer, text.c_str(), text.size() + 1);
  return BITA_OK;
}

bita_finish finish_of(bita::FinishReason reason) {
  switch (reason) {
    case bita::FinishReason::kEos:
      return BITA_FINISH_EOS;
    case bita::FinishReason::kStop:
      return BITA_FINISH_STOP;
    case bita::FinishReason::kLength:
      return BITA_FINISH_LENGTH;
    case bita::FinishReason::kCapacity:
      return BITA_FINISH_CAPACITY;
    case bita::FinishReason::kTimeout:
      return BITA_FINISH_TIMEOUT;
    case bita::FinishReason::kCancelled:
      return BITA_FINISH_CANCELLED;
    default:
      return BITA_FINISH_NONE;
  }
}

}  // namespace

const char* bita_version(void) {
#define BITA_TEXT_OF(number) #number
#define BITA_DOTTED(major, minor, patch) \
  BITA_TEXT_OF(major) "." BITA_TEXT_OF(minor) "." BITA_TEXT_OF(patch)
  return BITA_DOTTED(BITA_VERSION_MAJOR, BITA_VERSION_MINOR, BITA_VERSION_PATCH);
}

const char* bita_error(void) { return last_error.c_str(); }

bita_status bita_engine_open(const char* directory, const bita_engine_options* options,
                             bita_engine** engine) {
  if (engine) *engine = nullptr;
  return guarded([&] {
    need(directory, "directory");
    need(engine, "engine");
    const bita_engine_options known =
        completed(options, bita_engine_options BITA_ENGINE_OPTIONS_INIT, "options");
    auto opened = std::make_unique<bita_engine>();
    opened->loaded = std::make_shared<bita::LoadedEngine>(directory, settings_of(known));
    opened->chat_reason = known.token_ids_only ? "the engine was opened for token ids only"
                                               : opened->loaded->chat_reason();
    opened->onnxruntime = bita::ort_version();
    *engine = opened.release();
    return BITA_OK;
  });
}

void bita_engine_free(bita_engine* engine) { delete engine; }

bita_status bita_engine_describe(const bita_engine* engine, bita_engine_info* info) {
  return guarded([&] {
    need(engine, "engine");
    bita::LoadedEngine& loaded = *engine->loaded;
    const bita::Manifest& manifest = loaded.manifest();
    bita_engine_info found = BITA_ENGINE_INFO_INIT;
    found.model = manifest.model.c_str();
    found.precision = manifest.precision.c_str();
    found.onnxruntime = engine->onnxruntime.c_str();
    found.chat_reason = engine->chat_reason.empty() ? nullptr : engine->chat_reason.c_str();
    found.vocab_size = manifest.vocab_size;
    found.capacity = manifest.capacity;
    found.max_prompt_tokens = loaded.max_prompt_tokens();
    found.num_threads = loaded.num_threads();
    found.uses_drafts = loaded.uses_drafts();
    found.has_weights_in_memory = loaded.has_weights_in_memory();
    const auto& sampling = loaded.defaults().sampling;
    const auto recommended = [&](const char* name, double otherwise) {
      const auto number = sampling.find(name);
      return number == sampling.end() ? otherwise : number->second;
    };
    found.has_sampling = !sampling.empty();
    found.temperature = recommended("temperature", 0.0);
    found.top_p = recommended("top_p", 1.0);
    found.min_p = recommended("min_p", 0.0);
    found.repetition_penalty = recommended("repetition_penalty", 1.0);
    found.top_k = static_cast<int64_t>(recommended("top_k", 0.0));
    give(found, info, "info");
    return BITA_OK;
  });
}

bita_status bita_encode(const bita_engine* engine, const char* text, size_t num_bytes,
                        bool add_special_tokens, int32_t* ids, size_t capacity, size_t* num_ids) {
  if (num_ids) *num_ids = 0;
  return guarded([&]() -> bita_status {
    need(engine, "engine");
    if (num_bytes) need(text, "text");
    const std::vector<int32_t> found = engine->loaded->codec().encode(
        std::string_view(num_bytes ? text : "", num_bytes), add_special_tokens);
    if (num_ids) *num_ids = found.size();
    if (found.size() > capacity) {
      const std::string message = "the text has " + std::to_string(found.size()) +
                                  " tokens, the buffer " + std::to_string(capacity);
      return failed(BITA_ERROR_SIZE, message.c_str());
    }
    if (!found.empty()) need(ids, "ids");
    std::copy(found.begin(), found.end(), ids);
    return BITA_OK;
  });
}

bita_status bita_decode(const bita_engine* engine, const int32_t* ids, size_t num_ids, char* text,
                        size_t capacity, size_t* num_bytes) {
  if (num_bytes) *num_bytes = 0;
  return guarded([&] {
    need(engine, "engine");
    if (num_ids) need(ids, "ids");
    const std::vector<int32_t> held(ids, ids + num_ids);
    return give_text(engine->loaded->codec().decode(held), text, capacity, num_bytes);
  });
}

bita_status bita_render(const bita_engine* engine, const bita_message* messages,
                        size_t num_messages, bool add_generation_prompt, char* text,
                        size_t capacity, size_t* num_bytes) {
  if (num_bytes) *num_bytes = 0;
  return guarded([&] {
    need(engine, "engine");
    const std::string prompt =
        engine->loaded->render(messages_of(messages, num_messages), add_generation_prompt);
    return give_text(prompt, text, capacity, num_bytes);
  });
}

bita_status bita_session_new(bita_engine* engine, const bita_session_options* options,
                             bita_session** session) {
  if (session) *session = nullptr;
  return guarded([&] {
    need(engine, "engine");
    need(session, "session");
    const bita_session_options known =
        completed(options, bita_session_options BITA_SESSION_OPTIONS_INIT, "options");
    bita::TextSettings settings;
    settings.tree_path = text_or_empty(known.tree_path);
    settings.adapter_path = text_or_empty(known.adapter_path);
    settings.overflow = static_cast<bita::Overflow>(
        checked_choice(known.overflow, BITA_OVERFLOW_DROP_OLDEST, "options.overflow"));
    auto made = std::make_unique<bita_session>();
    made->session = std::make_unique<bita::Session>(engine->loaded, settings);
    *session = made.release();
    return BITA_OK;
  });
}

bita_status bita_session_fork(bita_session* session, bita_session** other) {
  if (other) *other = nullptr;
  return guarded([&] {
    need(session, "session");
    need(other, "other");
    auto made = std::make_unique<bita_session>();
    made->session = session->session->fork();
    *other = made.release();
    return BITA_OK;
  });
}

void bita_session_free(bita_session* session) { delete session; }

bita_status bita_start_text(bita_session* session, const char* text, bool add_special_tokens,
                            const bita_answer_options* options) {
  return guarded([&] {
    need(session, "session");
    need(text, "text");
    session->session->start_text(text, add_special_tokens, options_of(options));
    return BITA_OK;
  });
}

bita_status bita_start_tokens(bita_session* session, const int32_t* ids, size_t num_ids,
                              const bita_answer_options* options) {
  return guarded([&] {
    need(session, "session");
    if (num_ids) need(ids, "ids");
    session->session->start_tokens(std::vector<int64_t>(ids, ids + num_ids), options_of(options));
    return BITA_OK;
  });
}

bita_status bita_start_chat(bita_session* session, const bita_message* messages,
                            size_t num_messages, const bita_answer_options* options) {
  return guarded([&] {
    need(session, "session");
    session->session->start_chat(messages_of(messages, num_messages), options_of(options));
    return BITA_OK;
  });
}

bita_status bita_next(bita_session* session, bita_step* step) {
  return guarded([&]() -> bita_status {
    need(session, "session");
    bita_step found = BITA_STEP_INIT;
    found.text = "";
    give(found, step, "step");
    const bool has_more = session->session->step(session->result);
    found.token_ids = session->result.token_ids.data();
    found.num_token_ids = session->result.token_ids.size();
    found.text = session->result.text.c_str();
    found.num_bytes = session->result.text.size();
    found.finish = finish_of(session->session->finish_reason());
    found.seed = session->session->seed();
    found.num_dropped = session->session->num_dropped();
    give(found, step, "step");
    return has_more ? BITA_OK : BITA_DONE;
  });
}

void bita_cancel(bita_session* session) {
  if (session) session->session->cancel();
}

bita_status bita_session_clear(bita_session* session) {
  return guarded([&] {
    need(session, "session");
    session->session->clear();
    return BITA_OK;
  });
}

bita_status bita_session_stats(const bita_session* session, bita_stats* stats) {
  return guarded([&] {
    need(session, "session");
    const bita::Stats& counted = session->session->stats();
    bita_stats found = {};
    found.num_steps = counted.num_steps;
    found.num_tokens = counted.num_tokens;
    found.num_prompt_tokens = counted.num_prompt_tokens;
    found.num_reused_tokens = counted.num_reused_tokens;
    found.num_accepted = counted.num_accepted;
    found.num_from_text = counted.num_from_text;
    found.num_guarded_steps = counted.num_guarded_steps;
    static_assert(bita::kMaxDepthCounted == BITA_STATS_DEPTHS);
    std::copy(counted.accepted_by_depth.begin(), counted.accepted_by_depth.end(),
              found.accepted_by_depth);
    found.prompt_ms = counted.prefill_ms;
    found.step_ms = counted.step_ms;
    found.backend_ms = counted.backend_ms;
    found.peak_memory_bytes = bita::peak_host_bytes();
    give(found, stats, "stats");
    return BITA_OK;
  });
}
