/* A libcuda.so.1 without a GPU, for the real bindings of cuda-python to be tested against.
 *
 * It keeps the driver's binary interface and its documented rules for handles, memory ranges and
 * captures, and runs all work at once on the host. A kernel image is a host library made by the
 * kernels' own shim. `stub_*` are for the tests: to make a call fail, and to see the last launch.
 * Written from the documentation of the CUDA driver API; a test holds the layouts to cuda.h where
 * that is installed. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
    OK = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    LAUNCH_FAILED = 719,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
    CAPTURE_UNMATCHED = 903,
    CAPTURE_UNJOINED = 904,
    CAPTURED_EVENT = 907,
    UPDATE_FAILURE = 910,
    FUNCTION_NOT_LOADED = 913
};
enum { ALIGNMENT = 256, POISON = 0xFF, MAX_ARGUMENTS = 48 };
static const size_t DEVICE_BYTES = (size_t)1 << 30;

#include "stub_layout.h"

typedef const char *(*HostKernel)(const unsigned *grid, const unsigned *block,
                                  const unsigned *cluster, unsigned shared, void **arguments);
typedef struct {
    HostKernel run;
    const unsigned *sizes;
    int loaded, shared;
    char name[64];
} Function;
typedef struct Node {
    enum { COPY, FILL, LAUNCH } kind;
    char *to;
    const char *from;
    size_t size;
    int byte;
    Function *function;
    unsigned grid[3], block[3], cluster[3], shared;
    char cells[MAX_ARGUMENTS][128];
    struct Node *next;
} Node;
typedef struct {
    Node *first, *last;
    int count;
} Graph;
typedef struct Stream {
    Graph *graph;
    int origin, invalid, joined;
    unsigned sequence;
    pthread_t thread;
    struct Stream *next;
} Stream;
typedef struct {
    unsigned flags;
    int recorded;
    Graph *captured;
    Stream *stream;
    unsigned sequence;
} Event;
typedef struct {
    void *library;
    int functions;
    Function function[16];
} Module;
typedef struct Range {
    char *start;
    size_t size;
    int host;
    struct Range *next;
} Range;

static int started, context_count, lost, busy;
static __thread int current;
static Stream *streams;
static Range *ranges;
static size_t used;
static char fail_name[64];
static int fail_code;
static Attribute last_attributes[8];
static unsigned last_count, last_shared;

void stub_fail(const char *name, int code) {
    snprintf(fail_name, sizeof fail_name, "%s", name);
    fail_code = code;
}
void stub_busy(int value) {
    busy = value;
}
unsigned stub_last_attributes(Attribute *out) {
    memcpy(out, last_attributes, sizeof last_attributes);
    return last_count;
}
unsigned stub_last_shared(void) {
    return last_shared;
}
size_t stub_used(void) {
    return used;
}

/* What every call starts with: the failure a test asked for, a lost device, a current context. */
static int enter(const char *name, int needs_context) {
    if (fail_code && !strcmp(name, fail_name)) {
        int code = fail_code;
        fail_code = 0;
        if (code >= 700 && code < 720) lost = code;
        return code;
    }
    if (!started) return NOT_INITIALIZED;
    if (lost) return lost;
    return needs_context && !current ? INVALID_CONTEXT : OK;
}

/* The bindings call without Python's lock, and the driver takes calls from any thread. */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t *lock(void) {
    pthread_mutex_lock(&mutex);
    return &mutex;
}
static void unlock(pthread_mutex_t **held) {
    pthread_mutex_unlock(*held);
}

#define ENTER(context)                                                        \
    pthread_mutex_t *held_ __attribute__((cleanup(unlock), unused)) = lock(); \
    int code_ = enter(__func__, context);                                     \
    if (code_) return code_

static Stream *find(Stream *stream) {
    for (Stream *s = streams; s; s = s->next)
        if (s == stream) return s;
    return NULL;
}
#define STREAM(s)                        \
    ENTER(1);                            \
    if (!find(s)) return INVALID_HANDLE; \
    if ((s)->invalid) return CAPTURE_INVALIDATED

/* A call that this thread's capture forbids spoils the capture. */
static int forbidden(void) {
    int spoiled = 0;
    for (Stream *s = streams; s; s = s->next)
        if (s->graph && pthread_equal(s->thread, pthread_self())) s->invalid = spoiled = 1;
    return spoiled;
}
#define NOT_IN_CAPTURE() \
    ENTER(1);            \
    if (forbidden()) return CAPTURE_UNSUPPORTED

static int reachable(const void *address, size_t size) {
    for (Range *r = ranges; r; r = r->next)
        if ((char *)address >= r->start && (char *)address + size <= r->start + r->size) return 1;
    return 0;
}
static int take(void **address, size_t size, int host) {
    if (!size) return INVALID_VALUE;
    if (!host && used + size > DEVICE_BYTES) return OUT_OF_MEMORY;
    Range *r = malloc(sizeof *r);
    if (posix_memalign((void **)&r->start, ALIGNMENT, size)) return OUT_OF_MEMORY;
    memset(r->start, POISON, size);
    r->size = size;
    r->host = host;
    r->next = ranges;
    ranges = r;
    if (!host) used += size;
    *address = r->start;
    return OK;
}
static int give(void *address, int host) {
    for (Range **r = &ranges; *r; r = &(*r)->next)
        if ((*r)->start == address && (*r)->host == host) {
            Range *gone = *r;
            *r = gone->next;
            if (!host) used -= gone->size;
            free(gone->start);
            free(gone);
            return OK;
        }
    return INVALID_VALUE;
}

static int run(Node *n) {
    if (n->kind == LAUNCH) {
        void *arguments[MAX_ARGUMENTS];
        for (int i = 0; n->function->sizes[i]; i++) arguments[i] = n->cells[i];
        if (n->function->run(n->grid, n->block, n->cluster, n->shared, arguments))
            return lost = LAUNCH_FAILED;
        return OK;
    }
    if (!reachable(n->to, n->size) || (n->kind == COPY && !reachable(n->from, n->size)))
        return lost = ILLEGAL_ADDRESS;
    if (n->kind == COPY)
        memcpy(n->to, n->from, n->size);
    else
        memset(n->to, n->byte, n->size);
    return OK;
}
static int submit(Stream *stream, Node node) {
    stream->sequence++;
    stream->joined = 0;
    if (!stream->graph) return run(&node);
    Node *kept = malloc(sizeof *kept);
    *kept = node;
    kept->next = NULL;
    if (stream->graph->last)
        stream->graph->last->next = kept;
    else
        stream->graph->first = kept;
    stream->graph->last = kept;
    stream->graph->count++;
    return OK;
}

int cuInit(unsigned flags) {
    int code = fail_code;
    (void)flags;
    if (code && !strcmp(fail_name, "cuInit")) {
        fail_code = 0;
        return code;
    }
    started = 1;
    return OK;
}
int cuDriverGetVersion(int *version) {
    const char *text = getenv("STUB_DRIVER_VERSION");
    *version = text ? atoi(text) : 13000;
    return OK;
}
int cuGetErrorName(int code, const char **text) {
    static char name[32];
    snprintf(name, sizeof name, "STUB_ERROR_%d", code);
    *text = name;
    return OK;
}
int cuGetErrorString(int code, const char **text) {
    (void)code;
    *text = "as the test asked";
    return OK;
}
int cuDeviceGetCount(int *count) {
    ENTER(0);
    *count = 1;
    return OK;
}
int cuDeviceGet(int *device, int ordinal) {
    ENTER(0);
    if (ordinal) return INVALID_DEVICE;
    *device = 0;
    return OK;
}
int cuDeviceGetName(char *name, int length, int device) {
    ENTER(0);
    (void)device;
    snprintf(name, length, "stub");
    return OK;
}
int cuDeviceGetAttribute(int *value, int kind, int device) {
    ENTER(0);
    (void)device;
    switch (kind) { /* CUdevice_attribute */
        case 1:
            *value = 1024;
            return OK;
        case 16:
            *value = 132;
            return OK;
        case 75:
            *value = 9;
            return OK;
        case 76:
            *value = 0;
            return OK;
        case 97:
            *value = 232448;
            return OK;
        default:
            return INVALID_VALUE;
    }
}
int cuDevicePrimaryCtxRetain(void **context, int device) {
    ENTER(0);
    (void)device;
    context_count++;
    *context = &context_count;
    return OK;
}
int cuDevicePrimaryCtxRelease(int device) {
    (void)device;
    if (!context_count) return INVALID_CONTEXT;
    if (!--context_count) lost = 0;
    return OK;
}
int cuCtxSetCurrent(void *context) {
    if (context != &context_count || !context_count) return INVALID_CONTEXT;
    current = 1;
    return OK;
}
int cuCtxSynchronize(void) {
    NOT_IN_CAPTURE();
    return OK;
}

int cuMemGetInfo(size_t *free_, size_t *total) {
    ENTER(1);
    *free_ = DEVICE_BYTES - used;
    *total = DEVICE_BYTES;
    return OK;
}
int cuMemAlloc(void **address, size_t size) {
    NOT_IN_CAPTURE();
    return take(address, size, 0);
}
int cuMemFree(void *address) {
    NOT_IN_CAPTURE();
    return give(address, 0);
}
int cuMemHostAlloc(void **address, size_t size, unsigned flags) {
    NOT_IN_CAPTURE();
    return flags & ~1u ? INVALID_VALUE : take(address, size, 1);
}
int cuMemFreeHost(void *address) {
    NOT_IN_CAPTURE();
    return give(address, 1);
}
int cuMemPoolCreate(void **pool, const PoolProperties *p) {
    ENTER(1);
    if (p->type != 1 || p->handles || p->location.type != 1 || p->location.id || p->security ||
        p->usage)
        return INVALID_VALUE;
    *pool = malloc(1);
    return OK;
}
int cuMemPoolSetAttribute(void *pool, int kind, void *value) {
    ENTER(1);
    return pool && kind == 4 && *(uint64_t *)value == UINT64_MAX ? OK : INVALID_VALUE;
}
int cuMemPoolTrimTo(void *pool, size_t keep) {
    ENTER(1);
    (void)keep;
    return pool ? OK : INVALID_VALUE;
}
int cuMemPoolDestroy(void *pool) {
    ENTER(1);
    free(pool);
    return OK;
}
int cuMemAllocFromPoolAsync(void **address, size_t size, void *pool, Stream *s) {
    STREAM(s);
    (void)pool;
    return s->graph ? CAPTURE_UNSUPPORTED : take(address, size, 0);
}
int cuMemFreeAsync(void *address, Stream *s) {
    STREAM(s);
    return s->graph ? CAPTURE_UNSUPPORTED : give(address, 0);
}

int cuStreamCreate(Stream **stream, unsigned flags) {
    NOT_IN_CAPTURE();
    if (flags != 1) return INVALID_VALUE; /* the default stream's followers have no place here */
    *stream = calloc(1, sizeof **stream);
    (*stream)->next = streams;
    streams = *stream;
    return OK;
}
int cuStreamDestroy(Stream *stream) {
    ENTER(1);
    for (Stream **s = &streams; *s; s = &(*s)->next)
        if (*s == stream) {
            *s = stream->next;
            free(stream);
            return OK;
        }
    return INVALID_HANDLE;
}
int cuStreamQuery(Stream *s) {
    STREAM(s);
    if (s->graph) {
        s->invalid = 1;
        return CAPTURE_UNSUPPORTED;
    }
    return busy ? NOT_READY : OK;
}
int cuStreamSynchronize(Stream *s) {
    STREAM(s);
    if (s->graph) {
        s->invalid = 1;
        return CAPTURE_UNSUPPORTED;
    }
    return OK;
}
int cuStreamBeginCapture(Stream *s, int mode) {
    STREAM(s);
    if (s->graph || mode != 1) return INVALID_VALUE;
    s->graph = calloc(1, sizeof *s->graph);
    s->origin = 1;
    s->thread = pthread_self();
    return OK;
}
static void destroy(Graph *graph) {
    for (Node *n = graph->first; n;) {
        Node *next = n->next;
        free(n);
        n = next;
    }
    free(graph);
}
int cuStreamEndCapture(Stream *stream, Graph **out) {
    ENTER(1);
    if (!find(stream) || !stream->graph || !stream->origin) return CAPTURE_UNMATCHED;
    Graph *graph = stream->graph;
    int code = stream->invalid ? CAPTURE_INVALIDATED : OK;
    for (Stream *s = streams; s; s = s->next)
        if (s->graph == graph) {
            if (!s->origin && !s->joined && !code) code = CAPTURE_UNJOINED;
            if (s->invalid) code = CAPTURE_INVALIDATED;
            s->graph = NULL;
            s->origin = s->invalid = 0;
        }
    *out = code ? NULL : graph;
    if (code) destroy(graph);
    return code;
}
int cuStreamWaitEvent(Stream *s, Event *e, unsigned flags) {
    STREAM(s);
    if (flags) return INVALID_VALUE;
    if (!e->captured) return OK;
    if (!s->graph) {
        s->graph = e->captured;
        s->thread = pthread_self();
        s->joined = 0;
        s->sequence++;
    }
    if (s->graph != e->captured) return CAPTURE_UNMATCHED;
    if (e->stream != s && e->stream->sequence == e->sequence) e->stream->joined = 1;
    return OK;
}

int cuEventCreate(Event **event, unsigned flags) {
    ENTER(1);
    if (flags & ~3u) return INVALID_VALUE;
    *event = calloc(1, sizeof **event);
    (*event)->flags = flags;
    return OK;
}
int cuEventDestroy(Event *event) {
    ENTER(1);
    free(event);
    return OK;
}
int cuEventQuery(Event *e) {
    ENTER(1);
    if (e->captured) return CAPTURED_EVENT;
    return e->recorded && busy ? NOT_READY : OK;
}
int cuEventSynchronize(Event *e) {
    ENTER(1);
    return e->captured ? CAPTURED_EVENT : OK;
}
int cuEventRecord(Event *e, Stream *s) {
    STREAM(s);
    e->recorded = 1;
    e->captured = s->graph;
    e->stream = s;
    e->sequence = s->sequence;
    return OK;
}
int cuEventElapsedTime(float *ms, Event *start, Event *end) {
    ENTER(1);
    if ((start->flags | end->flags) & 2) return INVALID_HANDLE;
    if (!start->recorded || !end->recorded) return INVALID_HANDLE;
    *ms = 1.5f;
    return OK;
}

int cuMemcpyAsync(char *to, const char *from, size_t size, Stream *s) {
    STREAM(s);
    return submit(s, (Node){.kind = COPY, .to = to, .from = from, .size = size});
}
int cuMemsetD8Async(char *to, unsigned char byte, size_t size, Stream *s) {
    STREAM(s);
    return submit(s, (Node){.kind = FILL, .to = to, .byte = byte, .size = size});
}

/* The image is the bytes of a host ELF library; its size is the end of its section table. */
int cuModuleLoadData(Module **module, const unsigned char *image) {
    NOT_IN_CAPTURE();
    if (memcmp(image, "\177ELF", 4)) return INVALID_IMAGE;
    uint64_t sections;
    uint16_t each, count;
    memcpy(&sections, image + 0x28, 8);
    memcpy(&each, image + 0x3A, 2);
    memcpy(&count, image + 0x3C, 2);
    int file = memfd_create("image", 0);
    size_t size = sections + (size_t)each * count;
    if (write(file, image, size) != (ssize_t)size) return INVALID_IMAGE;
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    Module *m = calloc(1, sizeof *m);
    m->library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!m->library) return INVALID_IMAGE;
    *module = m;
    return OK;
}
int cuModuleUnload(Module *module) {
    ENTER(1);
    dlclose(module->library);
    free(module);
    return OK;
}
int cuModuleGetFunction(Function **out, Module *module, const char *name) {
    ENTER(1);
    char symbol[96];
    Function *f = &module->function[module->functions];
    snprintf(symbol, sizeof symbol, "host_launch_%s", name);
    f->run = (HostKernel)dlsym(module->library, symbol);
    snprintf(symbol, sizeof symbol, "host_sizes_%s", name);
    const unsigned *const *sizes = dlsym(module->library, symbol);
    if (!f->run || !sizes || module->functions == 15) return NOT_FOUND;
    f->sizes = *sizes;
    f->shared = 48 * 1024;
    module->functions++;
    *out = f;
    return OK;
}
int cuFuncLoad(Function *f) {
    NOT_IN_CAPTURE();
    f->loaded = 1;
    return OK;
}
int cuFuncGetAttribute(int *value, int kind, Function *f) {
    ENTER(1);
    if (kind != 1 && kind != 8) return INVALID_VALUE;
    *value = kind == 8 ? f->shared : 0;
    return OK;
}
int cuFuncSetAttribute(Function *f, int kind, int value) {
    ENTER(1);
    if (kind != 8) return INVALID_VALUE;
    f->shared = value;
    return OK;
}
int cuLaunchKernelEx(const LaunchConfig *c, Function *f, void **arguments, void **extra) {
    STREAM(c->stream);
    if (extra || (int)c->shared > f->shared || c->count > 8) return INVALID_VALUE;
    if (!f->loaded) return FUNCTION_NOT_LOADED;
    Node node = {.kind = LAUNCH, .function = f, .cluster = {1, 1, 1}, .shared = c->shared};
    for (unsigned i = 0; i < c->count; i++)
        if (c->attributes[i].id == CLUSTER_DIMENSION)
            memcpy(node.cluster, &c->attributes[i].value, sizeof node.cluster);
    memcpy(node.grid, c->grid, sizeof node.grid);
    memcpy(node.block, c->block, sizeof node.block);
    for (int i = 0; f->sizes[i]; i++) {
        if (i == MAX_ARGUMENTS || f->sizes[i] > sizeof node.cells[i]) return INVALID_VALUE;
        memcpy(node.cells[i], arguments[i], f->sizes[i]);
    }
    last_count = c->count;
    last_shared = c->shared;
    memset(last_attributes, 0, sizeof last_attributes);
    if (c->count) memcpy(last_attributes, c->attributes, c->count * sizeof(Attribute));
    return submit(c->stream, node);
}

int cuGraphInstantiateWithFlags(Graph **out, Graph *graph, unsigned long long flags) {
    NOT_IN_CAPTURE();
    if (flags) return INVALID_VALUE;
    Graph *copy = calloc(1, sizeof *copy);
    Stream sink = {.graph = copy};
    for (Node *n = graph->first; n; n = n->next) submit(&sink, *n);
    *out = copy;
    return OK;
}
int cuGraphInstantiate(Graph **out, Graph *graph, unsigned long long flags) {
    return cuGraphInstantiateWithFlags(out, graph, flags);
}
int cuGraphUpload(Graph *graph, Stream *s) {
    STREAM(s);
    return graph ? OK : INVALID_VALUE;
}
int cuGraphLaunch(Graph *graph, Stream *s) {
    STREAM(s);
    if (s->graph) return CAPTURE_UNSUPPORTED; /* child graphs have no place here */
    for (Node *n = graph->first; n; n = n->next) {
        int code = run(n);
        if (code) return code;
    }
    return OK;
}
int cuGraphDestroy(Graph *graph) {
    ENTER(1);
    destroy(graph);
    return OK;
}
int cuGraphExecDestroy(Graph *graph) {
    ENTER(1);
    destroy(graph);
    return OK;
}
int cuGraphExecUpdate(Graph *executable, Graph *graph, UpdateResult *result) {
    ENTER(1);
    memset(result, 0, sizeof *result);
    if (executable->count != graph->count) return UPDATE_FAILURE;
    Node *old = executable->first;
    for (Node *n = graph->first; n; n = n->next, old = old->next)
        if (n->kind != old->kind) return UPDATE_FAILURE;
    old = executable->first;
    for (Node *n = graph->first; n; n = n->next) {
        Node *next = old->next;
        *old = *n;
        old->next = next;
        old = next;
    }
    return OK;
}

/* The map is the simulator's plain one (kernels/driver/tensor_map.py), for the same host kernels. */
int cuTensorMapEncodeTiled(void *map, int type, uint32_t rank, void *address, const uint64_t *sizes,
                           const uint64_t *strides, const uint32_t *box, const uint32_t *steps,
                           int interleave, int swizzle, int promotion, int outside) {
    ENTER(1);
    struct {
        char magic[8];
        uint32_t rank, element_bytes;
        uint64_t address, sizes[5], strides[4];
        uint32_t box[5], swizzle, rest[2];
    } plain = {"TILE MA", rank, type == 7 ? 4 : 2, (uint64_t)address, {0}, {0}, {0}, 0, {0}};
    plain.magic[7] = 'P';
    if ((uintptr_t)map % 64 || plain.address % 16 || rank < 1 || rank > 5 || interleave ||
        outside || (type != 6 && type != 7 && type != 9) || swizzle < 0 || swizzle > 3 ||
        promotion < 0 || promotion > 3)
        return INVALID_VALUE;
    plain.swizzle = swizzle ? 16u << swizzle : 0;
    for (uint32_t i = 0; i < 5; i++) {
        plain.sizes[i] = i < rank ? sizes[i] : 1;
        plain.box[i] = i < rank ? box[i] : 1;
        if (i < rank && (steps[i] != 1 || box[i] < 1 || box[i] > 256)) return INVALID_VALUE;
        if (i + 1 < rank && strides[i] % 16) return INVALID_VALUE;
        if (i < 4) plain.strides[i] = i + 1 < rank ? strides[i] : 0;
    }
    if (plain.swizzle && box[0] * plain.element_bytes > plain.swizzle) return INVALID_VALUE;
    memcpy(map, &plain, sizeof plain);
    return OK;
}

int cuGetProcAddress_v2(const char *symbol, void **out, int version, uint64_t flags, int *status) {
    (void)flags;
    int known;
    cuDriverGetVersion(&known);
    if (!strcmp(symbol, "cuGetProcAddress")) symbol = "cuGetProcAddress_v2";
    Dl_info self;
    dladdr(&started, &self);
    void *library = dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    *out = version > known ? NULL : dlsym(library, symbol);  /* none of a later CUDA */
    /* Without these the loader would take the versioned names for missing functions. */
    if (status) *status = *out ? 0 : 1;
    return *out ? OK : NOT_FOUND;
}
