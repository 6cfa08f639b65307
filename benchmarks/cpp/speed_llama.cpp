// llama.cpp's C API for cpp_speed.py: speed_llama MODEL.gguf THREADS
#include <llama.h>

#include <cstdlib>

#include "timed.h"

namespace {

void be_silent(ggml_log_level, const char*, void*) {}

// Returns the best token after the last one decoded.
llama_token best_token(llama_context* context, int vocab_size) {
  const float* logits = llama_get_logits_ith(context, -1);
  int best = 0;
  for (int i = 1; i < vocab_size; ++i)
    if (logits[i] > logits[best]) best = i;
  return best;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) return 2;
  const auto began = timed::Clock::now();
  llama_log_set(be_silent, nullptr);
  llama_backend_init();
  llama_model* model = llama_model_load_from_file(arguments[1], llama_model_default_params());
  if (!model) return 1;
  llama_context_params params = llama_context_default_params();
  params.n_ctx = 2048;
  params.n_threads = params.n_threads_batch = std::atoi(arguments[2]);
  llama_context* context = llama_init_from_model(model, params);
  if (!context) return 1;
  const int vocab_size = llama_vocab_n_tokens(llama_model_get_vocab(model));
  timed::write_opened(timed::milliseconds(began));
  for (timed::Request request; timed::read(request);) {
    timed::Reply reply;
    llama_memory_clear(llama_get_memory(context), true);
    const auto started = timed::Clock::now();
    llama_batch batch =
        llama_batch_get_one(request.prompt.data(), static_cast<int>(request.prompt.size()));
    llama_token token = 0;
    while (static_cast<int>(reply.ids.size()) < request.num_new) {
      if (llama_decode(context, batch) != 0) return 1;
      token = best_token(context, vocab_size);
      if (reply.ids.empty()) reply.first_ms = timed::milliseconds(started);
      reply.ids.push_back(token);
      batch = llama_batch_get_one(&token, 1);
    }
    reply.whole_ms = timed::milliseconds(started);
    timed::write(reply);
  }
  timed::write_memory();
  llama_free(context);
  llama_model_free(model);
  return 0;
}
