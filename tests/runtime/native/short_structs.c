/* A program built with an older header, whose structs had only their first fields: short_structs
 * LIBRARY ENGINE PROMPT. Prints the answer. The library must not change the memory after the
 * structs. */
#include <bita/bita.h>
#include <stdio.h>
#include <string.h>

#define GUARD 0x5aa5f00dc001d00dULL
#define GUARDED(name, fields) \
  struct {                    \
    struct {                  \
      size_t struct_size;     \
      fields                  \
    } first;                  \
    uint64_t guards[64];      \
  } name

static int was_written(const uint64_t* guards) {
  int i;
  for (i = 0; i < 64; ++i)
    if (guards[i] != GUARD) return 1;
  return 0;
}

#define BEGIN(name)                                      \
  do {                                                   \
    size_t i_;                                           \
    memset(&name, 0, sizeof name);                       \
    name.first.struct_size = sizeof name.first;          \
    for (i_ = 0; i_ < 64; ++i_) name.guards[i_] = GUARD; \
  } while (0)

int main(int count, char** arguments) {
  GUARDED(opened, int32_t num_threads; int32_t log_level; bool check_hashes; bool map_weights;
          bool token_ids_only; int64_t cache_bytes; const char* onnxruntime_path;);
  GUARDED(info, const char* model;);
  GUARDED(asked, int32_t overflow; const char* tree_path;);
  GUARDED(options, int64_t max_new_tokens;);
  GUARDED(step, const int32_t* token_ids; size_t num_token_ids; const char* text;
          size_t num_bytes;);
  GUARDED(stats, int64_t num_steps; int64_t num_tokens;);
  bita_engine* engine = NULL;
  bita_session* session = NULL;
  bita_status status = BITA_ERROR_USE;
  if (count != 4) return 2;
  BEGIN(opened);
  BEGIN(info);
  BEGIN(asked);
  BEGIN(options);
  BEGIN(step);
  BEGIN(stats);
  opened.first.num_threads = 1;
  opened.first.onnxruntime_path = arguments[1];
  options.first.max_new_tokens = 40;
  if (bita_engine_open(arguments[2], (const bita_engine_options*)&opened, &engine) == BITA_OK &&
      bita_engine_describe(engine, (bita_engine_info*)&info) == BITA_OK &&
      bita_session_new(engine, (const bita_session_options*)&asked, &session) == BITA_OK &&
      bita_start_text(session, arguments[3], true, (const bita_answer_options*)&options) ==
          BITA_OK) {
    while ((status = bita_next(session, (bita_step*)&step)) == BITA_OK)
      fwrite(step.first.text, 1, step.first.num_bytes, stdout);
  }
  if (status == BITA_DONE) status = bita_session_stats(session, (bita_stats*)&stats);
  if (status != BITA_OK) fprintf(stderr, "%s\n", bita_error());
  if (was_written(opened.guards) || was_written(info.guards) || was_written(asked.guards) ||
      was_written(options.guards) || was_written(step.guards) || was_written(stats.guards)) {
    fprintf(stderr, "the library wrote past the end of a struct\n");
    status = BITA_ERROR_USE;
  }
  if (!info.first.model || stats.first.num_steps < 1 || stats.first.num_tokens < 1) {
    fprintf(stderr, "a struct was not filled in\n");
    status = BITA_ERROR_USE;
  }
  bita_session_free(session);
  bita_engine_free(engine);
  return status == BITA_OK ? 0 : 1;
}
