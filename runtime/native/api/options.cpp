#include "options.h"

#include "structs.h"

namespace bita::api {

EngineSettings settings_of(const bita_engine_options* given) {
  const bita_engine_options options =
      complete(given, bita_engine_options BITA_ENGINE_OPTIONS_INIT, "options");
  EngineSettings settings;
  if (options.num_threads < 0 || options.num_threads > 1024) {
    throw_misuse("num_threads is " + std::to_string(options.num_threads) + "; pass 0 to 1024");
  }
  if (options.cache_bytes < 0) {
    throw_misuse("cache_bytes is " + std::to_string(options.cache_bytes) + "; pass 0 or more");
  }
  settings.backend = text_or_empty(options.backend);
  settings.cuda.device = options.device;
  settings.cuda.captures_graphs = checked_choice(options.cuda_graphs, BITA_CUDA_GRAPHS_OFF,
                                                 "cuda_graphs") == BITA_CUDA_GRAPHS_ON;
  settings.session.num_threads = options.num_threads;
  settings.session.maps_weights = options.map_weights;
  settings.session.onnxruntime_path = text_or_empty(options.onnxruntime_path);
  settings.checks_hashes = options.check_hashes;
  settings.is_without_text = options.token_ids_only;
  if (options.cache_bytes) settings.cache_bytes = options.cache_bytes;
  if (options.log) {
    const auto level = checked_choice(options.log_level, BITA_LOG_WARNING, "log_level");
    const auto write = [log = options.log, context = options.log_context](
                           LogLevel at, const std::string& message) {
      log(context, static_cast<int32_t>(at), message.c_str());
    };
    settings.log = Log(write, static_cast<LogLevel>(level));
  }
  return settings;
}

Options options_of(const bita_answer_options* given) {
  const bita_answer_options from =
      complete(given, bita_answer_options BITA_ANSWER_OPTIONS_INIT, "options");
  Options options;
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
  const int32_t num_best = from.num_best;
  if (checked_choice(from.logprobs, 1, "options.logprobs")) {
    options.logprobs = num_best;
  } else if (num_best) {
    throw_misuse("options.num_best is " + std::to_string(num_best) +
                 " but options.logprobs is 0; set it to 1");
  }
  options.drafts =
      static_cast<DraftPolicy>(checked_choice(from.drafts, BITA_DRAFTS_OFF, "options.drafts"));
  return options;
}

std::vector<ChatMessage> messages_of(const bita_message* messages, size_t count) {
  if (count) need(messages, "messages");
  std::vector<ChatMessage> found;
  for (size_t i = 0; i < count; ++i) {
    need(messages[i].role, "messages[i].role");
    need(messages[i].content, "messages[i].content");
    found.push_back({messages[i].role, messages[i].content});
  }
  return found;
}

TextSettings text_settings_of(const bita_session_options* given) {
  const bita_session_options options =
      complete(given, bita_session_options BITA_SESSION_OPTIONS_INIT, "options");
  TextSettings settings;
  settings.tree_path = text_or_empty(options.tree_path);
  settings.adapter_path = text_or_empty(options.adapter_path);
  settings.overflow = static_cast<Overflow>(
      checked_choice(options.overflow, BITA_OVERFLOW_DROP_OLDEST, "options.overflow"));
  return settings;
}

}  // namespace bita::api
