// libbita for cpp_speed.py: speed_bita ONNXRUNTIME ENGINE THREADS DRAFTS
#include <bita/bita.hpp>
#include <cstdlib>

#include "timed.h"

int main(int count, char** arguments) try {
  if (count != 5) return 2;
  const auto began = timed::Clock::now();
  bita::EngineOptions options;
  options.onnxruntime_path = arguments[1];
  options.num_threads = std::atoi(arguments[3]);
  const bita::Engine engine(arguments[2], options);
  bita::Session session(engine);
  timed::write_opened(timed::milliseconds(began));
  for (timed::Request request; timed::read(request);) {
    bita::AnswerOptions answer;
    answer.max_new_tokens = request.num_new;
    answer.ignore_eos = true;
    answer.drafts = std::atoi(arguments[4]);
    session = bita::Session(engine);  // a new session, so that no prefix of the prompt is cached
    timed::Reply reply;
    const auto started = timed::Clock::now();
    session.start_tokens(request.prompt, answer);
    while (const auto step = session.next()) {
      if (reply.ids.empty() && step->num_token_ids) reply.first_ms = timed::milliseconds(started);
      reply.ids.insert(reply.ids.end(), step->token_ids, step->token_ids + step->num_token_ids);
    }
    reply.whole_ms = timed::milliseconds(started);
    const bita_stats stats = session.stats();
    // share of the time after the first token that is not spent in ONNX Runtime
    reply.host_share = 1 - stats.backend_ms / (reply.whole_ms - reply.first_ms);
    timed::write(reply);
  }
  timed::write_memory();
  return 0;
} catch (const bita::Error& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
