/* bita: language models with speculation from one engine, on CPUs.
 *
 * An engine directory (bita-edge's `make engine`) is opened as a bita_engine: its weights, shared
 * by all threads. A bita_session is one text's state: its cache, its conversation, and the answer
 * that is being made. Drafts are verified in the same step that makes the next ones; the text is
 * that of plain decoding, token by token, and the same as from Python.
 *
 *   bita_engine *engine;
 *   bita_session *session;
 *   bita_step step = BITA_STEP_INIT;
 *   if (bita_engine_open("engines/smollm2-135m-instruct-int4", NULL, &engine) ||
 *       bita_session_new(engine, NULL, &session) ||
 *       bita_start_text(session, "The sun is", true, NULL))
 *     return fprintf(stderr, "%s\n", bita_error());
 *   while (bita_next(session, &step) == BITA_OK) printf("%s", step.text);
 *   bita_session_free(session);
 *   bita_engine_free(engine);
 *
 * Statuses. A function that can fail returns BITA_OK (0) or an error, which is negative; bita_error
 * gives its message, with the value that is wrong and what to do. Results come through pointers,
 * which are set to NULL or 0 on errors. Nothing is thrown, printed or ended.
 *
 * Options and results are structs that begin with their size. Their NAME_INIT macro (or memset to 0
 * and struct_size = sizeof) gives the defaults, which are zeros: a program that was built with an
 * older header keeps working, since functions and fields are only added, at the end.
 *
 * Strings are UTF-8 and end with a zero byte. A string or array that is given is read before the
 * function returns, and not kept. What the library gives belongs to it, and lives as long as the
 * comment says.
 *
 * Threads. An engine may be used by several threads at once. A session is for one thread at a time,
 * but for bita_cancel. Sessions on one engine take turns, a step each, in the order in which they
 * ask.
 */
#ifndef BITA_BITA_H
#define BITA_BITA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32) && defined(BITA_BUILDS)
#define BITA_API __declspec(dllexport)
#elif defined(_WIN32)
#define BITA_API __declspec(dllimport)
#elif defined(BITA_BUILDS) && defined(__GNUC__)
#define BITA_API __attribute__((visibility("default")))
#else
#define BITA_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define BITA_VERSION_MAJOR 0
#define BITA_VERSION_MINOR 1
#define BITA_VERSION_PATCH 0

typedef struct bita_engine bita_engine;
typedef struct bita_session bita_session;

typedef int32_t bita_status;
enum {
  BITA_OK = 0,
  BITA_DONE = 1,           /* the answer has ended, and all of it was given */
  BITA_ERROR_ENGINE = -1,  /* an engine directory is broken, or cannot run here */
  BITA_ERROR_ADAPTER = -2, /* an adapter file is broken, or belongs to another model */
  BITA_ERROR_TREE = -3,    /* a tree file is not a tree, or does not fit the engine */
  BITA_ERROR_PROMPT = -4,  /* a prompt, a message or an option of an answer is not usable */
  BITA_ERROR_USE = -5,     /* a function was called against its contract */
  BITA_ERROR_SYSTEM = -6,  /* the system refused something: memory, threads, a library */
  BITA_ERROR_SIZE = -7     /* a buffer is too small; the size that is needed was given */
};

/* The version of the library, "0.1.0"; it may be newer than BITA_VERSION_MAJOR and so on. */
BITA_API const char* bita_version(void);

/* The message of the last call that failed in this thread; "" if none did. It lives until the next
 * call that fails in this thread. */
BITA_API const char* bita_error(void);

/* ---- engines ---- */

enum { BITA_CUDA_GRAPHS_ON = 0, BITA_CUDA_GRAPHS_OFF = 1 };
enum { BITA_LOG_DEBUG = 0, BITA_LOG_INFO = 1, BITA_LOG_WARNING = 2 };
typedef void (*bita_log_function)(void* context, int32_t level, const char* message);

typedef struct bita_engine_options {
  size_t struct_size;
  int32_t num_threads; /* of a step; 0: one for each core that the process may use */
  int32_t log_level;   /* the least that is logged */
  bool check_hashes;   /* hash the weights before they are loaded, about a second for a GB */
  bool map_weights;    /* leave the weights in the pages of their file, which processes share,
                          rather than read them into huge pages, with which steps are faster */
  bool token_ids_only; /* read no tokenizer: text functions fail, and steps have no text */
  int64_t cache_bytes; /* for keys and values beyond one text of full length, in which sessions
                          stay while others have their turns; 0: 256 MB. What does not fit is
                          computed again. On a GPU each session takes that of a full length */
  const char* onnxruntime_path; /* file of ONNX Runtime's library; NULL: the one that the loader
                                   finds, or the Python package's beside this library */
  bita_log_function log;        /* NULL: silent. Called by the thread that calls the library */
  void* log_context;
  const char* backend; /* what runs the steps: "ort-cpu", on which every engine runs, or "ort-cuda",
                          ONNX Runtime on a GPU; NULL: what the engine was built for */
  int32_t device;      /* number of the GPU */
  int32_t cuda_graphs; /* BITA_CUDA_GRAPHS_ON: decode steps are captured and launched as a whole */
} bita_engine_options;
#define BITA_ENGINE_OPTIONS_INIT \
  {sizeof(bita_engine_options), 0, 0, false, false, false, 0, NULL, NULL, NULL, NULL, 0, 0}

/* Check and load the engine in a directory. options: NULL for the defaults. The caller frees it. */
BITA_API bita_status bita_engine_open(const char* directory, const bita_engine_options* options,
                                      bita_engine** engine);

/* Free an engine, or do nothing for NULL. Sessions on it may be freed before or after it. */
BITA_API void bita_engine_free(bita_engine* engine);

typedef struct bita_engine_info {
  size_t struct_size;
  const char* model;       /* as its builder named it; strings live as long as the engine */
  const char* precision;   /* "int4" or "int8" */
  const char* onnxruntime; /* its version */
  const char* chat_reason; /* why messages cannot be rendered here; NULL if they can */
  int64_t vocab_size;
  int64_t capacity;           /* cache slots for the adapter's prefix, a text and a step's rows */
  int64_t max_prompt_tokens;  /* of a prompt that leaves room for an answer */
  int32_t num_threads;        /* of a step; 0: one for each physical core */
  bool uses_drafts;           /* whether its own trees draft anything: calibration decided that */
  bool has_weights_in_memory; /* in huge pages; else they are mapped, or on a GPU */
  bool has_sampling;          /* whether the model's authors say how to sample from it */
  double temperature, top_p, min_p, repetition_penalty; /* as they say, or an option's default */
  int64_t top_k;
  const char* backend; /* what runs its steps, "ort-cpu" or "ort-cuda" */
} bita_engine_info;
/* clang-format off */
#define BITA_ENGINE_INFO_INIT \
  {sizeof(bita_engine_info), NULL, NULL, NULL, NULL, 0, 0, 0, 0, false, false, false, 0, 0, 0, 0, \
   0, NULL}
/* clang-format on */

/* Fill in what an engine is. */
BITA_API bita_status bita_engine_describe(const bita_engine* engine, bita_engine_info* info);

/* ---- text: optional, token ids do without ---- */

/* Whether the tokenizer of the engine in a directory can be used here, without loading weights:
 * BITA_OK, or the error with which bita_engine_open fails unless token_ids_only is set. */
BITA_API bita_status bita_check_text(const char* directory);

/* Token ids of a text of num_bytes. add_special_tokens: put around it what the tokenizer adds by
 * itself, such as BOS: true for raw text, false for a rendered chat template. Writes up to capacity
 * ids, and their whole number to num_ids; BITA_ERROR_SIZE if that is more. */
BITA_API bita_status bita_encode(const bita_engine* engine, const char* text, size_t num_bytes,
                                 bool add_special_tokens, int32_t* ids, size_t capacity,
                                 size_t* num_ids);

/* The text of token ids, with a zero byte at its end. Writes up to capacity bytes, and the number
 * of bytes without the zero to num_bytes; BITA_ERROR_SIZE if capacity is not above it. */
BITA_API bita_status bita_decode(const bita_engine* engine, const int32_t* ids, size_t num_ids,
                                 char* text, size_t capacity, size_t* num_bytes);

typedef struct bita_message {
  const char* role; /* "system", "user" or "assistant" */
  const char* content;
} bita_message;

/* The prompt of messages by the model's chat template, ready for bita_start_text without special
 * tokens added; sizes as in bita_decode. */
BITA_API bita_status bita_render(const bita_engine* engine, const bita_message* messages,
                                 size_t num_messages, bool add_generation_prompt, char* text,
                                 size_t capacity, size_t* num_bytes);

/* ---- sessions ---- */

enum { BITA_OVERFLOW_REFUSE = 0, BITA_OVERFLOW_DROP_OLDEST = 1 };

typedef struct bita_session_options {
  size_t struct_size;
  int32_t overflow;      /* of a conversation that outgrows the cache: refuse it, or leave out the
                            oldest messages but a system message */
  const char* tree_path; /* a tree.json instead of the engine's own; NULL: its own */
  const char* adapter_path; /* an adapter file instead of the engine's own; NULL: its own */
} bita_session_options;
#define BITA_SESSION_OPTIONS_INIT {sizeof(bita_session_options), BITA_OVERFLOW_REFUSE, NULL, NULL}

/* A session on an engine. options: NULL for the defaults. The caller frees it. */
BITA_API bita_status bita_session_new(bita_engine* engine, const bita_session_options* options,
                                      bita_session** session);

/* Another session that goes on from here: the same conversation, and what is cached is shared and
 * not computed again. An answer that is being made is cancelled first. The caller frees it. */
BITA_API bita_status bita_session_fork(bita_session* session, bita_session** other);

/* Free a session, or do nothing for NULL. */
BITA_API void bita_session_free(bita_session* session);

/* ---- answers ---- */

enum {
  BITA_DRAFTS_ENGINE = 0, /* as the engine's calibration decided, and where drafts pay */
  BITA_DRAFTS_ON = 1,     /* in every step */
  BITA_DRAFTS_OFF = 2     /* plain decoding: the same text, a token a step */
};

/* What is done to a row of logits, in this order: penalties, biases, temperature, top_k, top_p,
 * min_p. Zeros are the defaults, with which decoding is greedy; where 0 would be a value of its
 * own, the comment says what it stands for. */
typedef struct bita_answer_options {
  size_t struct_size;
  int64_t max_new_tokens;        /* 0: 256 */
  const char* const* stops;      /* strings that end the answer and are not part of it */
  size_t num_stops;              /* 16 at most */
  const int32_t* stop_token_ids; /* tokens that end it, besides the model's own */
  size_t num_stop_token_ids;
  bool ignore_eos;
  bool has_seed;  /* else each answer has a new seed, see bita_step */
  int32_t drafts; /* BITA_DRAFTS_ENGINE and so on; the text is the same */
  uint64_t seed;
  double temperature;            /* 0: the best token; 1: the model's own distribution */
  int64_t top_k;                 /* the k best tokens, and those equal to the k-th; 0: all */
  double top_p;                  /* the best tokens that together have this probability; 0: all */
  double min_p;                  /* tokens with this share of the best one's probability; 0: all */
  double repetition_penalty;     /* divides logits of tokens in prompt and answer; 0: 1, none */
  double presence_penalty;       /* taken off the logits of tokens in the answer */
  double frequency_penalty;      /* the same for each time they occur */
  const int32_t* bias_token_ids; /* tokens whose logits get a bias */
  const double* biases;          /* as many */
  size_t num_biases;
  double timeout_s; /* seconds from the start until the answer ends, waiting included; 0: none */
  int32_t logprobs; /* 1: steps give the log-probability of each token, by the model itself */
  int32_t num_best; /* and of the num_best most probable tokens at its place, up to 20 */
} bita_answer_options;
/* clang-format off */
#define BITA_ANSWER_OPTIONS_INIT \
  {sizeof(bita_answer_options), 0, NULL, 0, NULL, 0, false, false, BITA_DRAFTS_ENGINE, 0, 0, 0, 0, \
   0, 0, 0, 0, NULL, NULL, 0, 0, 0, 0}
/* clang-format on */

/* Start an answer to a text, which is continued as it is. add_special_tokens: as in bita_encode.
 * What is cached of an earlier text that begins alike is not computed again. An answer that is
 * still being made is cancelled first. options: NULL for the defaults. */
BITA_API bita_status bita_start_text(bita_session* session, const char* text,
                                     bool add_special_tokens, const bita_answer_options* options);

/* The same for token ids. */
BITA_API bita_status bita_start_tokens(bita_session* session, const int32_t* ids, size_t num_ids,
                                       const bita_answer_options* options);

/* Add messages to the session's conversation, and start the answer to it. When it has ended, it is
 * part of the conversation, so that the next call gives only what is said then. */
BITA_API bita_status bita_start_chat(bita_session* session, const bita_message* messages,
                                     size_t num_messages, const bita_answer_options* options);

typedef int32_t bita_finish;
enum {
  BITA_FINISH_NONE = 0,     /* the answer goes on */
  BITA_FINISH_EOS = 1,      /* the model ended it */
  BITA_FINISH_STOP = 2,     /* a stop string or stop token */
  BITA_FINISH_LENGTH = 3,   /* max_new_tokens */
  BITA_FINISH_CAPACITY = 4, /* the cache is full */
  BITA_FINISH_TIMEOUT = 5,
  BITA_FINISH_CANCELLED = 6
};

/* What a step gave. Pointers live until the next call on the session. */
typedef struct bita_step {
  size_t struct_size;
  const int32_t* token_ids; /* all that the step accepted, an EOS at the end included */
  size_t num_token_ids;     /* 0 while a long prompt is read */
  const char* text; /* new text: whole characters, nothing that a stop string may take back */
  size_t num_bytes; /* of it; a text may hold zero bytes */
  bita_finish finish;
  uint64_t seed;                 /* that gives the same answer again */
  int64_t num_dropped;           /* messages that were left out of the prompt, see overflow */
  const double* logprobs;        /* natural logarithms, of each token; NULL unless asked for */
  const int32_t* best_token_ids; /* num_best for each token, best first */
  const double* best_logprobs;
  size_t num_best;
} bita_step;
#define BITA_STEP_INIT \
  {sizeof(bita_step), NULL, 0, NULL, 0, BITA_FINISH_NONE, 0, 0, NULL, NULL, NULL, 0}

/* Run a step of the answer and give what it accepted: BITA_OK, with `finish` set in the last one;
 * then BITA_DONE. After an error the answer has ended. */
BITA_API bita_status bita_next(bita_session* session, bita_step* step);

/* End the answer that is being made before its next step. Any thread may call it, and a signal
 * handler, while the session is not being freed. */
BITA_API void bita_cancel(bita_session* session);

/* Begin another conversation. What is cached stays, for texts that begin alike. */
BITA_API bita_status bita_session_clear(bita_session* session);

#define BITA_STATS_DEPTHS 32

/* Figures of all answers of a session. */
typedef struct bita_stats {
  size_t struct_size;
  int64_t num_steps;         /* decode steps */
  int64_t num_tokens;        /* that they emitted; the prompt's step gives one more */
  int64_t num_prompt_tokens; /* of all prompts */
  int64_t num_reused_tokens; /* those of them that were cached already */
  int64_t num_accepted;      /* drafts that were right */
  int64_t num_from_text;     /* of them, guesses from the text or the adapter's table */
  int64_t num_guarded_steps; /* steps with a smaller tree, since drafts did not pay */
  int64_t
      accepted_by_depth[BITA_STATS_DEPTHS]; /* right drafts by depth; the last: that or deeper */
  double prompt_ms;                         /* time of reading prompts */
  double step_ms;                           /* time of all decode steps */
  double backend_ms;                        /* the part of it in ONNX Runtime */
  int64_t peak_memory_bytes;                /* of the process */
  int64_t peak_device_bytes;                /* GPU memory of the engine at most; 0 on a CPU */
} bita_stats;

/* Fill in a session's figures; stats->struct_size has to be set. */
BITA_API bita_status bita_session_stats(const bita_session* session, bita_stats* stats);

#ifdef __cplusplus
}
#endif

#endif
