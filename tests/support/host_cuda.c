/* A stand-in for libcudart on the host, for tests. Memory comes from malloc, streams work
   synchronously, and a capturing stream records its operations for graphs to replay. cudaMemset
   fills memory as late as CUDA may: after the operations of streams, which do not wait for it. */
#include <stdlib.h>
#include <string.h>

typedef void (*callback_t)(void *);
enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_HANDLE = 400,
       CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901 };
enum kind { COPY, COPY_ROWS, FILL, CALL };

typedef struct {
    enum kind kind;
    char *target;
    const char *source;
    size_t target_pitch, source_pitch, width, height;
    int value;
    callback_t call;
    void *data;
} op_t;
typedef struct { op_t *ops; size_t count, room; } graph_t;
typedef struct { graph_t *capturing; int invalid, device; } stream_t;
typedef struct block { char *start; size_t size; struct block *next; op_t late; } block_t;

static block_t *blocks;
static size_t limit = (size_t)1 << 40, used;
static int major = 8, minor = 9, devices = 1, version = 13000, num_live, num_launches;
static _Thread_local int current_device, capture_mode;

void host_cuda_reset(void) { limit = (size_t)1 << 40; major = 8; minor = 9; devices = 1; version = 13000; }
void host_cuda_set_limit(size_t bytes) { limit = bytes; }
void host_cuda_set_capability(int a, int b) { major = a; minor = b; }
void host_cuda_set_devices(int count) { devices = count; }
void host_cuda_set_version(int value) { version = value; }
int host_cuda_num_live(void) { return num_live; }
int host_cuda_num_launches(void) { return num_launches; }

static int fits(const char *start, size_t size) {
    for (block_t *b = blocks; b; b = b->next)
        if (start >= b->start && start < b->start + b->size)
            return start + size <= b->start + b->size;
    return 1; /* pageable memory of the host */
}

static int allocate(void **out, size_t size) {
    if (used + size > limit) return OUT_OF_MEMORY;
    block_t *block = malloc(sizeof *block);
    if (posix_memalign((void **)&block->start, 256, size ? size : 1)) return OUT_OF_MEMORY;
    memset(block->start, 0xCD, size); /* nothing may rely on zeros */
    block->size = size;
    block->late = (op_t){.kind = FILL};
    block->next = blocks;
    blocks = block;
    used += size;
    num_live++;
    *out = block->start;
    return OK;
}

static int release(void *start) {
    for (block_t **at = &blocks; *at; at = &(*at)->next)
        if ((*at)->start == start) {
            block_t *gone = *at;
            *at = gone->next;
            used -= gone->size;
            num_live--;
            free(gone->start);
            free(gone);
            return OK;
        }
    return INVALID_VALUE;
}

static void perform(const op_t *op) {
    switch (op->kind) {
    case COPY: memmove(op->target, op->source, op->width); break;
    case COPY_ROWS:
        for (size_t row = 0; row < op->height; row++)
            memmove(op->target + row * op->target_pitch, op->source + row * op->source_pitch, op->width);
        break;
    case FILL: memset(op->target, op->value, op->width); break;
    case CALL: op->call(op->data); break;
    }
}

static void perform_late(void) {
    for (block_t *b = blocks; b; b = b->next)
        if (b->late.target) { perform(&b->late); b->late.target = NULL; }
}

static int put(stream_t *stream, op_t op) {
    graph_t *graph = stream->capturing;
    if (stream->device != current_device) return INVALID_HANDLE;
    if (!graph) { perform(&op); return OK; }
    if (stream->invalid) return CAPTURE_INVALIDATED;
    if (graph->count == graph->room)
        graph->ops = realloc(graph->ops, (graph->room = 2 * graph->room + 8) * sizeof(op_t));
    graph->ops[graph->count++] = op;
    return OK;
}

int cudaGetDeviceCount(int *count) {
    *count = devices;
    return devices ? OK : NO_DEVICE;
}
int cudaSetDevice(int device) {
    if (device < 0 || device >= devices) return INVALID_VALUE;
    current_device = device;
    return OK;
}
int cudaGetDevice(int *device) { *device = current_device; return OK; }
int cudaThreadExchangeStreamCaptureMode(int *mode) {
    int before = capture_mode;
    capture_mode = *mode;
    *mode = before;
    return OK;
}
int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    *value = attribute == 75 ? major : attribute == 76 ? minor : attribute == 16 ? 4 : 0;
    return OK;
}
int cudaRuntimeGetVersion(int *value) { *value = version; return OK; }
int cudaDriverGetVersion(int *value) { *value = version; return OK; }
int cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    *free_bytes = used < limit ? limit - used : 0;
    *total = limit;
    return OK;
}
int cudaMalloc(void **out, size_t size) { return allocate(out, size); }
int cudaFree(void *start) { return release(start); }
int cudaMallocHost(void **out, size_t size) { return allocate(out, size); }
int cudaFreeHost(void *start) { return release(start); }
int cudaMemset(void *target, int value, size_t size) {
    if (!fits(target, size)) return INVALID_VALUE;
    op_t op = {.kind = FILL, .target = target, .value = value, .width = size};
    perform_late();
    for (block_t *b = blocks; b; b = b->next)
        if (b->start <= op.target && op.target < b->start + b->size) { b->late = op; return OK; }
    perform(&op);
    return OK;
}
int cudaMemsetAsync(void *target, int value, size_t size, void *stream) {
    if (!fits(target, size)) return INVALID_VALUE;
    return put(stream, (op_t){.kind = FILL, .target = target, .value = value, .width = size});
}
int cudaMemcpyAsync(void *target, const void *source, size_t size, int direction, void *stream) {
    (void)direction;
    if (!fits(target, size) || !fits(source, size)) return INVALID_VALUE;
    return put(stream, (op_t){.kind = COPY, .target = target, .source = source, .width = size});
}
int cudaMemcpy2DAsync(void *target, size_t target_pitch, const void *source, size_t source_pitch,
                      size_t width, size_t height, int direction, void *stream) {
    (void)direction;
    if (width > target_pitch || width > source_pitch) return INVALID_VALUE;
    size_t rows = height ? height - 1 : 0;
    if (!fits(target, rows * target_pitch + width) || !fits(source, rows * source_pitch + width))
        return INVALID_VALUE;
    return put(stream, (op_t){.kind = COPY_ROWS, .target = target, .source = source,
                              .target_pitch = target_pitch, .source_pitch = source_pitch,
                              .width = width, .height = height});
}
int cudaStreamCreateWithFlags(void **out, unsigned flags) {
    (void)flags;
    stream_t *stream = calloc(1, sizeof(stream_t));
    stream->device = current_device;
    *out = stream;
    num_live++;
    return OK;
}
int cudaStreamDestroy(void *stream) { num_live--; free(stream); return OK; }
int cudaStreamSynchronize(void *stream) {
    stream_t *s = stream; /* NULL for the default stream */
    if (s && s->capturing) { s->invalid = 1; return CAPTURE_UNSUPPORTED; }
    perform_late();
    return OK;
}
int cudaStreamBeginCapture(void *stream, int mode) {
    (void)mode;
    stream_t *s = stream;
    if (s->capturing) return INVALID_VALUE;
    s->capturing = calloc(1, sizeof(graph_t));
    s->invalid = 0;
    num_live++;
    return OK;
}
static int drop(graph_t *graph) {
    if (!graph) return INVALID_VALUE;
    num_live--;
    free(graph->ops);
    free(graph);
    return OK;
}
int cudaStreamEndCapture(void *stream, void **out) {
    stream_t *s = stream;
    graph_t *graph = s->capturing;
    s->capturing = NULL;
    *out = NULL;
    if (s->invalid) { drop(graph); return CAPTURE_INVALIDATED; }
    *out = graph;
    return OK;
}
int cudaGraphInstantiateWithFlags(void **out, void *graph, unsigned long long flags) {
    (void)flags;
    if (!graph) return INVALID_VALUE;
    graph_t *from = graph, *copy = calloc(1, sizeof(graph_t));
    copy->ops = malloc((from->count + 1) * sizeof(op_t));
    memcpy(copy->ops, from->ops, from->count * sizeof(op_t));
    copy->count = copy->room = from->count;
    num_live++;
    *out = copy;
    return OK;
}
int cudaGraphLaunch(void *executable, void *stream) {
    graph_t *graph = executable;
    if (!graph) return INVALID_VALUE;
    num_launches++;
    int status = OK;
    for (size_t at = 0; at < graph->count && !status; at++) status = put(stream, graph->ops[at]);
    return status;
}
int cudaGraphDestroy(void *graph) { return drop(graph); }
int cudaGraphExecDestroy(void *graph) { return drop(graph); }
int cudaGetLastError(void) { return OK; }
const char *cudaGetErrorName(int status) {
    return status == OUT_OF_MEMORY ? "cudaErrorMemoryAllocation"
         : status == INVALID_VALUE ? "cudaErrorInvalidValue"
         : status == NO_DEVICE ? "cudaErrorNoDevice"
         : status == INVALID_HANDLE ? "cudaErrorInvalidResourceHandle"
         : status == CAPTURE_UNSUPPORTED ? "cudaErrorStreamCaptureUnsupported"
         : status == CAPTURE_INVALIDATED ? "cudaErrorStreamCaptureInvalidated" : "cudaErrorUnknown";
}
const char *cudaGetErrorString(int status) {
    return status == OUT_OF_MEMORY ? "out of memory"
         : status == INVALID_VALUE ? "invalid argument"
         : status == NO_DEVICE ? "no CUDA-capable device is detected"
         : status == INVALID_HANDLE ? "invalid resource handle"
         : status == CAPTURE_UNSUPPORTED ? "operation not permitted when stream is capturing"
         : status == CAPTURE_INVALIDATED
             ? "operation failed due to a previous error during capture" : "unknown error";
}
/* Enqueue a call, as an inference library does. */
int host_cuda_enqueue(void *stream, callback_t call, void *data) {
    return put(stream, (op_t){.kind = CALL, .call = call, .data = data});
}
