/* A simulator of the CUDA runtime calls that edgeattn makes, on host memory: for hosts without a GPU.
 *
 * It keeps what CUDA promises and a test can break: work is done when the stream is synchronized and not before (so that
 * a result read too early is an old one), a capture records and does not execute, waiting inside a capture spoils it,
 * copies must stay inside what was allocated, and what is created can be counted until it is destroyed. It says nothing
 * about speed. Numbers of errors are those of driver_types.h. One device, one thread.
 */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_HANDLE = 400, NOT_READY = 600, CAPTURE_UNSUPPORTED = 900,
       CAPTURE_INVALIDATED = 901 };
enum { COPY, RECORD, HOST, LAUNCH };

typedef struct work {
    int kind;
    char *to;
    const char *from;
    size_t bytes;
    void *handle;          /* event or graph */
    void (*function)(void *);
    void *argument;
    struct work *next;
} work;

typedef struct { work *first, *last; } list;
typedef struct { list queue; int capturing, spoiled; list captured; } stream;
typedef struct { double ms; int passed; } event;
typedef struct { list works; } graph;
typedef struct block { char *address; size_t bytes; struct block *next; } block;

static block *device_blocks;
static _Atomic int live, launches; /* steps of several threads count here */
static _Thread_local int last_error;

static int fail(int code) { last_error = code; return code; }

int simulatedLive(void) { return live; } /* of memory, streams, events and graphs */
int simulatedLaunches(void) { return launches; } /* of graphs */

int cudaGetLastError(void) { int code = last_error; last_error = OK; return code; }

const char *cudaGetErrorString(int code) {
    switch (code) {
    case INVALID_VALUE: return "invalid argument";
    case OUT_OF_MEMORY: return "out of memory";
    case INVALID_HANDLE: return "invalid resource handle";
    case NOT_READY: return "device not ready";
    case CAPTURE_UNSUPPORTED: return "operation not permitted when stream is capturing";
    case CAPTURE_INVALIDATED: return "operation failed due to a previous error during capture";
    default: return "unknown error";
    }
}

int cudaGetDeviceCount(int *count) { *count = 1; return OK; }
int cudaSetDevice(int device) { return device == 0 ? OK : fail(INVALID_VALUE); }
int cudaRuntimeGetVersion(int *version) { *version = 12060; return OK; }

int cudaDeviceGetAttribute(int *value, int which, int device) {
    (void)device;
    switch (which) {
    case 75: *value = 8; return OK;
    case 76: *value = 7; return OK;
    case 16: *value = 8; return OK;
    default: return fail(INVALID_VALUE);
    }
}

int cudaMalloc(void **address, size_t bytes) {
    block *found = malloc(sizeof *found);
    char *memory = bytes < ((size_t)1 << 40) ? malloc(bytes ? bytes : 1) : NULL;
    if (!found || !memory) { free(found); free(memory); return fail(OUT_OF_MEMORY); }
    memset(memory, 0xA5, bytes); /* device memory comes as it is */
    *found = (block){memory, bytes, device_blocks};
    device_blocks = found;
    *address = memory;
    live++;
    return OK;
}

int cudaFree(void *address) {
    for (block **place = &device_blocks; *place; place = &(*place)->next)
        if ((*place)->address == address) {
            block *gone = *place;
            *place = gone->next;
            free(gone->address);
            free(gone);
            live--;
            return OK;
        }
    return fail(INVALID_VALUE);
}

int cudaHostAlloc(void **address, size_t bytes, unsigned flags) {
    (void)flags;
    *address = malloc(bytes ? bytes : 1);
    if (!*address) return fail(OUT_OF_MEMORY);
    live++;
    return OK;
}

int cudaFreeHost(void *address) { free(address); live--; return OK; }

static int inside(const char *address, size_t bytes) {
    for (block *b = device_blocks; b; b = b->next)
        if (address >= b->address && address + bytes <= b->address + b->bytes) return 1;
    return 0;
}

static void append(list *works, work *fresh) {
    work *copy = malloc(sizeof *copy);
    *copy = *fresh;
    copy->next = NULL;
    if (works->last) works->last->next = copy; else works->first = copy;
    works->last = copy;
}

static void clear(list *works) {
    for (work *w = works->first; w;) { work *next = w->next; free(w); w = next; }
    *works = (list){0};
}

static int enqueue(stream *s, work fresh) {
    if (!s) return fail(INVALID_HANDLE);
    append(s->capturing ? &s->captured : &s->queue, &fresh);
    return OK;
}

static void perform(list *works) {
    for (work *w = works->first; w; w = w->next) {
        struct timespec now;
        switch (w->kind) {
        case COPY: memcpy(w->to, w->from, w->bytes); break;
        case HOST: w->function(w->argument); break;
        case LAUNCH: perform(&((graph *)w->handle)->works); break;
        case RECORD:
            clock_gettime(CLOCK_MONOTONIC, &now);
            ((event *)w->handle)->ms = now.tv_sec * 1e3 + now.tv_nsec / 1e6;
            ((event *)w->handle)->passed = 1;
        }
    }
}

int cudaStreamCreateWithFlags(void **made, unsigned flags) {
    (void)flags;
    *made = calloc(1, sizeof(stream));
    live++;
    return OK;
}

int cudaStreamDestroy(void *handle) {
    stream *s = handle;
    if (!s) return fail(INVALID_HANDLE);
    perform(&s->queue);
    clear(&s->queue);
    clear(&s->captured);
    free(s);
    live--;
    return OK;
}

int cudaStreamSynchronize(void *handle) {
    stream *s = handle;
    if (!s) return fail(INVALID_HANDLE);
    if (s->capturing) { s->spoiled = 1; return fail(CAPTURE_UNSUPPORTED); }
    perform(&s->queue);
    clear(&s->queue);
    return OK;
}

int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *handle) {
    if (kind < 1 || kind > 3) return fail(21); /* cudaErrorInvalidMemcpyDirection */
    if (((kind == 1 || kind == 3) && !inside(to, bytes)) || ((kind == 2 || kind == 3) && !inside(from, bytes)))
        return fail(INVALID_VALUE);
    return enqueue(handle, (work){.kind = COPY, .to = to, .from = from, .bytes = bytes});
}

int cudaLaunchHostFunc(void *handle, void (*function)(void *), void *argument) {
    return enqueue(handle, (work){.kind = HOST, .function = function, .argument = argument});
}

int cudaEventCreate(void **made) { *made = calloc(1, sizeof(event)); live++; return OK; }
int cudaEventDestroy(void *e) { if (!e) return fail(INVALID_HANDLE); free(e); live--; return OK; }

int cudaEventRecord(void *e, void *handle) {
    if (!e) return fail(INVALID_HANDLE);
    ((event *)e)->passed = 0;
    return enqueue(handle, (work){.kind = RECORD, .handle = e});
}

int cudaEventElapsedTime(float *ms, void *begin, void *end) {
    if (!begin || !end) return fail(INVALID_HANDLE);
    if (!((event *)begin)->passed || !((event *)end)->passed) return fail(NOT_READY);
    *ms = (float)(((event *)end)->ms - ((event *)begin)->ms);
    return OK;
}

int cudaStreamBeginCapture(void *handle, int mode) {
    stream *s = handle;
    (void)mode;
    if (!s) return fail(INVALID_HANDLE);
    if (s->capturing) return fail(CAPTURE_UNSUPPORTED);
    s->capturing = 1;
    s->spoiled = 0;
    return OK;
}

int cudaStreamEndCapture(void *handle, void **made) {
    stream *s = handle;
    *made = NULL;
    if (!s || !s->capturing) return fail(INVALID_VALUE);
    s->capturing = 0;
    if (s->spoiled) { clear(&s->captured); return fail(CAPTURE_INVALIDATED); }
    graph *g = malloc(sizeof *g);
    g->works = s->captured;
    s->captured = (list){0};
    *made = g;
    live++;
    return OK;
}

int cudaGraphInstantiateWithFlags(void **made, void *captured, unsigned long long flags) {
    (void)flags;
    if (!captured) return fail(INVALID_VALUE);
    graph *g = calloc(1, sizeof *g);
    for (work *w = ((graph *)captured)->works.first; w; w = w->next) append(&g->works, w);
    *made = g;
    live++;
    return OK;
}

int cudaGraphDestroy(void *g) { clear(&((graph *)g)->works); free(g); live--; return OK; }
int cudaGraphExecDestroy(void *g) { if (!g) return fail(INVALID_VALUE); return cudaGraphDestroy(g); }

int cudaGraphLaunch(void *g, void *handle) {
    if (!g) return fail(INVALID_VALUE);
    launches++;
    return enqueue(handle, (work){.kind = LAUNCH, .handle = g});
}
