/* bita: run language models with speculative decoding, on CPUs and on GPUs with CUDA.
 *
 * A bita_engine is an engine directory (built with bita-edge's `make engine`) loaded into memory.
 * All threads share its weights. A bita_session holds the state of one text: its KV cache, its
 * conversation, and the answer in progress. Each step verifies the drafts of the step before and
 * makes new ones. The text equals that of plain decoding, token by token, and that of Python.
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
 * Statuses. A function that can fail returns BITA_OK (0) or a negative error. bita_error() then
 * gives the message: what happened, the value, and what to do. Results are written through
 * pointers, which are set to NULL or 0 on errors. The library throws nothing, prints nothing, and
 * never ends the process.
 *
 * Options and results are structs whose first field is their size. Initialize them with their
 * NAME_INIT macro, or with memset to 0 and struct_size = sizeof. Zeros are the defaults. Functions
 * and fields are only ever added, fields at the end, so a program built with an older header keeps
 * working.
 *
 * Strings are UTF-8 and zero-terminated. The library reads the strings and arrays it is passed
 * before the function returns, and does not keep them. Memory that it returns belongs to the
 * library; the comments say how long it is valid.
 *
 * Threads. Several threads may use an engine at once. A session is for one thread at a time, except
 * for bita_cancel. Sessions on one engine take turns, one step each, in the order of their
 * requests.
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
#define BITA_VERSION_MINOR 2
#define BITA_VERSION_PATCH 0

typedef struct bita_engine bita_engine;
typedef struct bita_session bita_session;

typedef int32_t bita_status;
enum {
  BITA_OK = 0,
  BITA_DONE = 1,           /* the answer has ended, and all of it has been returned */
  BITA_ERROR_ENGINE = -1,  /* the engine directory is broken, or cannot run here */
  BITA_ERROR_ADAPTER = -2, /* the adapter file is broken, or belongs to another model */
  BITA_ERROR_TREE = -3,    /* the tree file is invalid, or does not fit the engine */
  BITA_ERROR_PROMPT = -4,  /* a prompt, a message or an answer option is invalid */
  BITA_ERROR_USE = -5,     /* the call violates the function's contract */
  BITA_ERROR_SYSTEM = -6,  /* the system refused memory, a thread, or a library */
  BITA_ERROR_SIZE = -7     /* the buffer is too small; the required size was written */
};

/* Return the library's version, such as "0.2.0". It may be newer than the header's
 * BITA_VERSION_MAJOR, _MINOR and _PATCH. The string is static. */
BITA_API const char* bita_version(void);

/* Return the message of the last failed call in this thread, or "" if none failed. It is valid
 * until the next failed call in this thread. */
BITA_API const char* bita_error(void);

/* ---- engines ---- */

enum { BITA_CUDA_GRAPHS_ON = 0, BITA_CUDA_GRAPHS_OFF = 1 };
enum { BITA_LOG_DEBUG = 0, BITA_LOG_INFO = 1, BITA_LOG_WARNING = 2 };
/* Receives a BITA_LOG_* level and a message, which is valid during the call. It must not throw. */
typedef void (*bita_log_function)(void* context, int32_t level, const char* message);

typedef struct bita_engine_options {
  size_t struct_size;
  int32_t num_threads; /* threads per step; 0: one per physical core that the process may use */
  int32_t log_level;   /* lowest level that is logged, BITA_LOG_DEBUG to BITA_LOG_WARNING */
  bool check_hashes;   /* verify the hashes of the weights before loading, about 1 s per GB */
  /* true: map the weights from their file, so that processes share its pages.
   * false: read them into huge pages, which makes steps faster. */
  bool map_weights;
  bool token_ids_only; /* load no tokenizer: text functions fail, and steps have no text */
  /* Bytes of KV cache in addition to the room for one text of full length; 0: 256 MB. Sessions keep
   * their texts there while others run; what does not fit is computed again. On a GPU each session
   * takes the room for a text of full length. */
  int64_t cache_bytes;
  /* File of ONNX Runtime's library. NULL: the one that the loader finds, or that of the Python
   * package installed alongside this library. */
  const char* onnxruntime_path;
  bita_log_function log; /* called in the thread that calls the library; NULL: no logging */
  void* log_context;     /* passed to `log` unchanged */
  /* "ort-cpu", which runs every engine, or "ort-cuda", ONNX Runtime on a GPU. NULL: the backend
   * that the engine was built for. */
  const char* backend;
  int32_t device; /* index of the GPU */
  /* BITA_CUDA_GRAPHS_ON: capture decode steps as CUDA graphs, each launched as a whole. */
  int32_t cuda_graphs;
} bita_engine_options;
#define BITA_ENGINE_OPTIONS_INIT \
  {sizeof(bita_engine_options), 0, 0, false, false, false, 0, NULL, NULL, NULL, NULL, 0, 0}

/* Check and load the engine in `directory`. NULL options are the defaults. The caller frees the
 * engine with bita_engine_free. */
BITA_API bita_status bita_engine_open(const char* directory, const bita_engine_options* options,
                                      bita_engine** engine);

/* Free an engine; NULL is ignored. Its sessions may be freed before or after it. */
BITA_API void bita_engine_free(bita_engine* engine);

/* A description of an engine. Its strings are valid as long as the engine. */
typedef struct bita_engine_info {
  size_t struct_size;
  const char* model;       /* the model's name, as given when the engine was built */
  const char* precision;   /* of the weights, such as "int4" or "int8" */
  const char* onnxruntime; /* version of ONNX Runtime */
  const char* chat_reason; /* why messages cannot be rendered; NULL if they can */
  int64_t vocab_size;
  int64_t capacity;           /* cache slots for the adapter's prefix, a text, and a step's rows */
  int64_t max_prompt_tokens;  /* longest prompt, in tokens, that leaves room for an answer */
  int32_t num_threads;        /* threads per step; 0: one per physical core */
  bool uses_drafts;           /* whether the engine's own trees draft; calibration decides that */
  bool has_weights_in_memory; /* whether the weights are in huge pages, not mapped or on a GPU */
  bool has_sampling;          /* whether the model's authors recommend sampling options */
  double temperature, top_p, min_p, repetition_penalty; /* recommended, or the option's default */
  int64_t top_k;                                        /* likewise */
  const char* backend;                                  /* "ort-cpu" or "ort-cuda" */
} bita_engine_info;
/* clang-format off */
#define BITA_ENGINE_INFO_INIT \
  {sizeof(bita_engine_info), NULL, NULL, NULL, NULL, 0, 0, 0, 0, false, false, false, 0, 0, 0, 0, \
   0, NULL}
/* clang-format on */

/* Describe an engine; info->struct_size must be set. */
BITA_API bita_status bita_engine_describe(const bita_engine* engine, bita_engine_info* info);

/* ---- text: optional, not needed for token ids ---- */

/* Check whether this library can use the tokenizer of the engine in `directory`, without loading
 * weights. Returns BITA_OK, or the error with which bita_engine_open would fail unless
 * token_ids_only is set. */
BITA_API bita_status bita_check_text(const char* directory);

/* Encode `num_bytes` bytes of text as token ids.
 *
 * add_special_tokens: whether to add the tokens that the tokenizer puts around a text, such as BOS.
 *     Pass true for raw text, false for a rendered chat template.
 * ids: receives up to `capacity` ids.
 * num_ids: receives the full number of ids, or NULL. If it exceeds `capacity`, nothing is written
 *     to `ids` and the call returns BITA_ERROR_SIZE. */
BITA_API bita_status bita_encode(const bita_engine* engine, const char* text, size_t num_bytes,
                                 bool add_special_tokens, int32_t* ids, size_t capacity,
                                 size_t* num_ids);

/* Decode token ids to text, terminated by a zero byte.
 *
 * text: receives up to `capacity` bytes, the zero included.
 * num_bytes: receives the length in bytes, without the zero, or NULL. If it is not below
 *     `capacity`, nothing is written to `text` and the call returns BITA_ERROR_SIZE. */
BITA_API bita_status bita_decode(const bita_engine* engine, const int32_t* ids, size_t num_ids,
                                 char* text, size_t capacity, size_t* num_bytes);

typedef struct bita_message {
  const char* role; /* "system", "user" or "assistant" */
  const char* content;
} bita_message;

/* Render messages with the model's chat template. Pass the result to bita_start_text with
 * add_special_tokens false.
 *
 * add_generation_prompt: whether to end with the beginning of an assistant message.
 * text, capacity, num_bytes: as in bita_decode. */
BITA_API bita_status bita_render(const bita_engine* engine, const bita_message* messages,
                                 size_t num_messages, bool add_generation_prompt, char* text,
                                 size_t capacity, size_t* num_bytes);

/* ---- sessions ---- */

/* What happens to a conversation that outgrows the cache: BITA_OVERFLOW_REFUSE returns an error,
 * BITA_OVERFLOW_DROP_OLDEST leaves the oldest messages out of the prompt, but keeps a system
 * message at the start. */
enum { BITA_OVERFLOW_REFUSE = 0, BITA_OVERFLOW_DROP_OLDEST = 1 };

typedef struct bita_session_options {
  size_t struct_size;
  int32_t overflow;         /* BITA_OVERFLOW_REFUSE or BITA_OVERFLOW_DROP_OLDEST */
  const char* tree_path;    /* a tree.json to use; NULL: the engine's own */
  const char* adapter_path; /* an adapter file to use; NULL: the engine's own */
} bita_session_options;
#define BITA_SESSION_OPTIONS_INIT {sizeof(bita_session_options), BITA_OVERFLOW_REFUSE, NULL, NULL}

/* Create a session on an engine. NULL options are the defaults. The caller frees the session with
 * bita_session_free. */
BITA_API bita_status bita_session_new(bita_engine* engine, const bita_session_options* options,
                                      bita_session** session);

/* Create a second session that continues from the same point. It has the same conversation and
 * options; cached rows are shared or copied, not computed again. An answer in progress is cancelled
 * first. The caller frees `other` with bita_session_free. */
BITA_API bita_status bita_session_fork(bita_session* session, bita_session** other);

/* Free a session; NULL is ignored. */
BITA_API void bita_session_free(bita_session* session);

/* ---- answers ---- */

enum {
  BITA_DRAFTS_ENGINE = 0, /* draft as calibrated, and only while drafts pay off */
  BITA_DRAFTS_ON = 1,     /* draft in every step */
  BITA_DRAFTS_OFF = 2     /* decode plainly: the same text, one token per step */
};

/* Options of an answer. Zeros are the defaults, with which decoding is greedy; the comments say
 * what 0 means. Logits are processed in this order: penalties, biases, temperature, top_k, top_p,
 * min_p. */
typedef struct bita_answer_options {
  size_t struct_size;
  int64_t max_new_tokens;        /* limit of tokens in the answer; 0: 256 */
  const char* const* stops;      /* strings that end the answer and are not part of its text */
  size_t num_stops;              /* number of `stops`, at most 16 */
  const int32_t* stop_token_ids; /* tokens that end the answer, besides the model's EOS tokens */
  size_t num_stop_token_ids;     /* number of `stop_token_ids` */
  bool ignore_eos;               /* continue after the model's EOS tokens */
  bool has_seed;                 /* use `seed`; false: a new seed per answer, see bita_step */
  int32_t drafts;                /* a BITA_DRAFTS_* constant; does not change the text */
  uint64_t seed;                 /* read if has_seed is true */
  double temperature;            /* 0: greedy; 1: the model's own distribution */
  int64_t top_k;                 /* keep the k best tokens, and ties with the k-th; 0: all */
  double top_p;                  /* keep the best tokens that sum to this probability; 0: all */
  double min_p;                  /* keep tokens from this share of the best probability; 0: all */
  double repetition_penalty;     /* divides logits of tokens in prompt or answer; 0 or 1: none */
  double presence_penalty;       /* subtracted from logits of tokens in the answer; 0: none */
  double frequency_penalty;      /* likewise, once per occurrence in the answer; 0: none */
  const int32_t* bias_token_ids; /* tokens whose logits get a bias */
  const double* biases;          /* value added to the logit of each of bias_token_ids */
  size_t num_biases;             /* number of `bias_token_ids` and of `biases` */
  double timeout_s;              /* seconds from start to end, waiting included; 0: no limit */
  int32_t logprobs;              /* 1: steps report each token's log-probability; 0: off */
  int32_t num_best;              /* with logprobs: best tokens reported per position, 0 to 20 */
} bita_answer_options;
/* clang-format off */
#define BITA_ANSWER_OPTIONS_INIT \
  {sizeof(bita_answer_options), 0, NULL, 0, NULL, 0, false, false, BITA_DRAFTS_ENGINE, 0, 0, 0, 0, \
   0, 0, 0, 0, NULL, NULL, 0, 0, 0, 0}
/* clang-format on */

/* Start an answer that continues `text`. add_special_tokens is as in bita_encode. Rows that are
 * cached for an earlier text with the same beginning are not computed again. An answer in progress
 * is cancelled first. NULL options are the defaults. */
BITA_API bita_status bita_start_text(bita_session* session, const char* text,
                                     bool add_special_tokens, const bita_answer_options* options);

/* Start an answer that continues token ids, otherwise like bita_start_text. */
BITA_API bita_status bita_start_tokens(bita_session* session, const int32_t* ids, size_t num_ids,
                                       const bita_answer_options* options);

/* Add messages to the session's conversation and start the answer to it. The answer joins the
 * conversation when it has ended, so pass only new messages to the next call. */
BITA_API bita_status bita_start_chat(bita_session* session, const bita_message* messages,
                                     size_t num_messages, const bita_answer_options* options);

typedef int32_t bita_finish;
enum {
  BITA_FINISH_NONE = 0,     /* the answer has not ended */
  BITA_FINISH_EOS = 1,      /* the model ended it */
  BITA_FINISH_STOP = 2,     /* a stop string or stop token ended it */
  BITA_FINISH_LENGTH = 3,   /* it has max_new_tokens tokens */
  BITA_FINISH_CAPACITY = 4, /* the cache is full */
  BITA_FINISH_TIMEOUT = 5,  /* timeout_s has passed */
  BITA_FINISH_CANCELLED = 6 /* bita_cancel, or another call that cancels it */
};

/* Result of a step. Its pointers are valid until the next call on the session. */
typedef struct bita_step {
  size_t struct_size;
  const int32_t* token_ids; /* accepted tokens, including an EOS at the end */
  size_t num_token_ids;     /* number of `token_ids`; 0 while a long prompt is being read */
  /* New text in whole characters, zero-terminated. Text that may still become part of a stop string
   * is held back. */
  const char* text;
  size_t num_bytes;              /* length of `text`, which may contain zero bytes */
  bita_finish finish;            /* set in the last step; BITA_FINISH_NONE before */
  uint64_t seed;                 /* seed with which the same answer can be made again */
  int64_t num_dropped;           /* messages left out of the prompt, see overflow */
  const double* logprobs;        /* natural log-probability of each token; NULL if not requested */
  const int32_t* best_token_ids; /* num_best ids for each token, best first */
  const double* best_logprobs;   /* log-probability of each of best_token_ids */
  size_t num_best;               /* best tokens per position */
} bita_step;
#define BITA_STEP_INIT \
  {sizeof(bita_step), NULL, 0, NULL, 0, BITA_FINISH_NONE, 0, 0, NULL, NULL, NULL, 0}

/* Run a step of the answer. Returns BITA_OK with the accepted tokens, the last time with `finish`
 * set; after that BITA_DONE. An error ends the answer. */
BITA_API bita_status bita_next(bita_session* session, bita_step* step);

/* End the answer in progress before its next step. Any thread and any signal handler may call this,
 * as long as the session is not being freed. Without an answer in progress it has no effect. */
BITA_API void bita_cancel(bita_session* session);

/* Begin a new conversation. An answer in progress is cancelled. Cached rows stay, for texts with
 * the same beginning. */
BITA_API bita_status bita_session_clear(bita_session* session);

#define BITA_STATS_DEPTHS 32

/* Counters and times over all answers of a session. */
typedef struct bita_stats {
  size_t struct_size;
  int64_t num_steps;         /* decode steps */
  int64_t num_tokens;        /* tokens that decode steps emitted; each prefill emits one more */
  int64_t num_prompt_tokens; /* tokens of all prompts */
  int64_t num_reused_tokens; /* prompt tokens that were cached already */
  int64_t num_accepted;      /* accepted drafts */
  int64_t num_from_text;     /* accepted drafts from the text or the adapter's table */
  int64_t num_guarded_steps; /* decode steps with a smaller tree because drafts did not pay off */
  /* Accepted drafts by depth, from depth 1; the last entry counts all deeper ones too. */
  int64_t accepted_by_depth[BITA_STATS_DEPTHS];
  double prompt_ms;          /* time of all prefills */
  double step_ms;            /* time of all decode steps */
  double backend_ms;         /* part of step_ms inside ONNX Runtime */
  int64_t peak_memory_bytes; /* peak physical memory of the process; 0 if unknown */
  int64_t peak_device_bytes; /* peak GPU memory of the engine; 0 on a CPU */
} bita_stats;

/* Write a session's statistics; stats->struct_size must be set. */
BITA_API bita_status bita_session_stats(const bita_session* session, bita_stats* stats);

#ifdef __cplusplus
}
#endif

#endif
