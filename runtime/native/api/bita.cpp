// The C interface. No exception crosses it: every fault becomes a status and a message.
#define BITA_BUILDS 1
#include "bita/bita.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#include "../session/ort_library.h"
#include "options.h"
#include "structs.h"

struct bita_engine {
  std::shared_ptr<bita::LoadedEngine> loaded;
  std::string chat_reason, onnxruntime;
};

struct bita_session {
  std::unique_ptr<bita::Session> session;
  // The last step's pointers point into these.
  bita::StepResult result;
  std::vector<double> logprobs, best_logprobs;
  std::vector<int32_t> best_token_ids;

  // Flatten the log-probabilities of the result and point `step` at them.
  void set_logprobs(bita_step& step) {
    logprobs.clear();
    best_logprobs.clear();
    best_token_ids.clear();
    for (const bita::TokenLogprob& token : result.logprobs) {
      logprobs.push_back(token.logprob);
      for (const auto& [id, logprob] : token.best) {
        best_token_ids.push_back(id);
        best_logprobs.push_back(logprob);
      }
    }
    if (logprobs.empty()) return;
    step.logprobs = logprobs.data();
    step.num_best = result.logprobs[0].best.size();
    step.best_token_ids = best_token_ids.data();
    step.best_logprobs = best_logprobs.data();
  }
};

namespace {

using bita::Fault;
using bita::FaultKind;
using bita::api::fill;
using bita::api::need;

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

bita_status set_error(bita_status status, const char* message) noexcept {
  try {
    last_error = message;
  } catch (...) {
    last_error.clear();  // no memory for the message
  }
  return status;
}

// Run `work` and turn any exception into a status.
template <class Work>
bita_status run_guarded(Work work) noexcept {
  try {
    return work();
  } catch (const Fault& fault) {
    return set_error(status_of(fault.kind()), fault.what());
  } catch (const std::bad_alloc&) {
    return set_error(BITA_ERROR_SYSTEM, "out of memory");
  } catch (const std::exception& error) {
    return set_error(BITA_ERROR_SYSTEM, error.what());
  } catch (...) {
    return set_error(BITA_ERROR_SYSTEM, "an unknown error");
  }
}

// Copy a text and its terminating zero into a caller's buffer.
bita_status copy_text(const std::string& text, char* buffer, size_t capacity, size_t* num_bytes) {
  if (num_bytes) *num_bytes = text.size();
  if (capacity <= text.size()) {
    const std::string message = "the text has " + std::to_string(text.size()) +
                                " bytes and a final zero, but the buffer has room for " +
                                std::to_string(capacity) + "; pass a larger buffer";
    return set_error(BITA_ERROR_SIZE, message.c_str());
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
  return run_guarded([&] {
    need(directory, "directory");
    need(engine, "engine");
    auto opened = std::make_unique<bita_engine>();
    opened->loaded =
        std::make_shared<bita::LoadedEngine>(directory, bita::api::settings_of(options));
    opened->chat_reason = opened->loaded->text().chat_reason();
    opened->onnxruntime = bita::ort_version();
    *engine = opened.release();
    return BITA_OK;
  });
}

void bita_engine_free(bita_engine* engine) { delete engine; }

bita_status bita_engine_describe(const bita_engine* engine, bita_engine_info* info) {
  return run_guarded([&] {
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
    found.backend = loaded.backend().c_str();
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
    fill(found, info, "info");
    return BITA_OK;
  });
}

bita_status bita_check_text(const char* directory) {
  return run_guarded([&] {
    need(directory, "directory");
    const bita::EngineText text(bita::open_directory(directory, false));
    return BITA_OK;
  });
}

bita_status bita_encode(const bita_engine* engine, const char* text, size_t num_bytes,
                        bool add_special_tokens, int32_t* ids, size_t capacity, size_t* num_ids) {
  if (num_ids) *num_ids = 0;
  return run_guarded([&]() -> bita_status {
    need(engine, "engine");
    if (num_bytes) need(text, "text");
    const std::vector<int32_t> found = engine->loaded->text().codec().encode(
        std::string_view(num_bytes ? text : "", num_bytes), add_special_tokens);
    if (num_ids) *num_ids = found.size();
    if (found.size() > capacity) {
      const std::string message = "the text has " + std::to_string(found.size()) +
                                  " tokens, but the buffer has room for " +
                                  std::to_string(capacity) + "; pass a larger buffer";
      return set_error(BITA_ERROR_SIZE, message.c_str());
    }
    if (!found.empty()) need(ids, "ids");
    std::copy(found.begin(), found.end(), ids);
    return BITA_OK;
  });
}

bita_status bita_decode(const bita_engine* engine, const int32_t* ids, size_t num_ids, char* text,
                        size_t capacity, size_t* num_bytes) {
  if (num_bytes) *num_bytes = 0;
  return run_guarded([&] {
    need(engine, "engine");
    if (num_ids) need(ids, "ids");
    const std::vector<int32_t> held(ids, ids + num_ids);
    return copy_text(engine->loaded->text().codec().decode(held), text, capacity, num_bytes);
  });
}

bita_status bita_render(const bita_engine* engine, const bita_message* messages,
                        size_t num_messages, bool add_generation_prompt, char* text,
                        size_t capacity, size_t* num_bytes) {
  if (num_bytes) *num_bytes = 0;
  return run_guarded([&] {
    need(engine, "engine");
    const std::string prompt = engine->loaded->text().render(
        bita::api::messages_of(messages, num_messages), add_generation_prompt);
    return copy_text(prompt, text, capacity, num_bytes);
  });
}

bita_status bita_session_new(bita_engine* engine, const bita_session_options* options,
                             bita_session** session) {
  if (session) *session = nullptr;
  return run_guarded([&] {
    need(engine, "engine");
    need(session, "session");
    auto made = std::make_unique<bita_session>();
    made->session =
        std::make_unique<bita::Session>(engine->loaded, bita::api::text_settings_of(options));
    *session = made.release();
    return BITA_OK;
  });
}

bita_status bita_session_fork(bita_session* session, bita_session** other) {
  if (other) *other = nullptr;
  return run_guarded([&] {
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
  return run_guarded([&] {
    need(session, "session");
    need(text, "text");
    session->session->start_text(text, add_special_tokens, bita::api::options_of(options));
    return BITA_OK;
  });
}

bita_status bita_start_tokens(bita_session* session, const int32_t* ids, size_t num_ids,
                              const bita_answer_options* options) {
  return run_guarded([&] {
    need(session, "session");
    if (num_ids) need(ids, "ids");
    session->session->start_tokens(std::vector<int64_t>(ids, ids + num_ids),
                                   bita::api::options_of(options));
    return BITA_OK;
  });
}

bita_status bita_start_chat(bita_session* session, const bita_message* messages,
                            size_t num_messages, const bita_answer_options* options) {
  return run_guarded([&] {
    need(session, "session");
    session->session->start_chat(bita::api::messages_of(messages, num_messages),
                                 bita::api::options_of(options));
    return BITA_OK;
  });
}

bita_status bita_next(bita_session* session, bita_step* step) {
  return run_guarded([&]() -> bita_status {
    need(session, "session");
    bita_step found = BITA_STEP_INIT;
    found.text = "";
    fill(found, step, "step");
    const bool has_more = session->session->step(session->result);
    found.token_ids = session->result.token_ids.data();
    found.num_token_ids = session->result.token_ids.size();
    found.text = session->result.text.c_str();
    found.num_bytes = session->result.text.size();
    found.finish = finish_of(session->session->finish_reason());
    found.seed = session->session->seed();
    found.num_dropped = session->session->num_dropped();
    session->set_logprobs(found);
    fill(found, step, "step");
    return has_more ? BITA_OK : BITA_DONE;
  });
}

void bita_cancel(bita_session* session) {
  if (session) session->session->cancel();
}

bita_status bita_session_clear(bita_session* session) {
  return run_guarded([&] {
    need(session, "session");
    session->session->clear();
    return BITA_OK;
  });
}

bita_status bita_session_stats(const bita_session* session, bita_stats* stats) {
  return run_guarded([&] {
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
    found.peak_device_bytes = session->session->engine().peak_device_bytes();
    fill(found, stats, "stats");
    return BITA_OK;
  });
}
