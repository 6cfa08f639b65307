/* Continue a prompt: generate ENGINE PROMPT */
#include <bita/bita.h>
#include <stdio.h>

int main(int count, char** arguments) {
  bita_engine* engine = NULL;
  bita_session* session = NULL;
  bita_step step = BITA_STEP_INIT;
  bita_stats stats = {.struct_size = sizeof stats};
  bita_status status = BITA_ERROR_USE;
  if (count != 3) {
    fprintf(stderr, "usage: generate ENGINE PROMPT\n");
    return 2;
  }
  if (bita_engine_open(arguments[1], NULL, &engine) == BITA_OK &&
      bita_session_new(engine, NULL, &session) == BITA_OK &&
      bita_start_text(session, arguments[2], true, NULL) == BITA_OK) {
    while ((status = bita_next(session, &step)) == BITA_OK) {
      fwrite(step.text, 1, step.num_bytes, stdout);
      fflush(stdout);
    }
  }
  if (status == BITA_DONE && bita_session_stats(session, &stats) == BITA_OK && stats.num_steps)
    printf("\n%.0f tokens/s, %.2f tokens a step\n", 1000 * stats.num_tokens / stats.step_ms,
           (double)stats.num_tokens / stats.num_steps);
  if (status != BITA_DONE) fprintf(stderr, "%s\n", bita_error());
  bita_session_free(session);
  bita_engine_free(engine);
  return status == BITA_DONE ? 0 : 1;
}
