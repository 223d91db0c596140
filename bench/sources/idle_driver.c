/* A libcuda.so.1 that does nothing, for the time that our side of the real bindings takes.
 *
 * Every call returns at once; work and events count as done. Device memory is host memory. Copies
 * are made when the host waits for a stream, so that what was sent comes back. Written from the
 * documentation of the CUDA driver API. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    void *to;
    const void *from;
    size_t size;
} Copy;
enum { OK = 0, OUT_OF_MEMORY = 2, NOT_FOUND = 500, MOST = 4096 };
static Copy copies[MOST];
static int count, capturing;
static char thing; /* what every handle points at */

static int give(void **out) {
    *out = &thing;
    return OK;
}
static int allocate(void **out, size_t size) {
    /* Fresh pages that nobody touches cost nothing. */
    void *raw = calloc(1, size + 512);
    if (!raw) return OUT_OF_MEMORY;
    char *place = (char *)(((uintptr_t)raw + 511) & ~(uintptr_t)255);
    ((void **)place)[-1] = raw;
    *out = place;
    return OK;
}
static int settle(void) {
    for (int i = 0; i < count; i++) memcpy(copies[i].to, copies[i].from, copies[i].size);
    count = 0;
    return OK;
}
static int release(void *place) {
    settle();
    free(((void **)place)[-1]);
    return OK;
}

int cuInit(unsigned flags) { return (void)flags, OK; }
int cuDriverGetVersion(int *version) { return *version = 13000, OK; }
int cuDeviceGet(int *device, int ordinal) { return *device = ordinal, OK; }
int cuDeviceGetName(char *name, int size, int device) {
    (void)device;
    return strncpy(name, "nothing", size), OK;
}
int cuDeviceGetAttribute(int *value, int kind, int device) {
    (void)device;
    /* Capability 9.0, shared memory and threads of a block, multiprocessors: those of sm_90. */
    *value = kind == 75 ? 9 : kind == 76 ? 0 : kind == 97 ? 232448 : kind == 16 ? 132 : 1024;
    return OK;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { return (void)device, give(context); }
int cuDevicePrimaryCtxRelease(int device) { return (void)device, OK; }
int cuCtxSetCurrent(void *context) { return (void)context, OK; }
int cuCtxSynchronize(void) { return settle(); }
int cuGetErrorName(int code, const char **text) { return (void)code, *text = "error", OK; }
int cuGetErrorString(int code, const char **text) { return (void)code, *text = "error", OK; }

int cuMemGetInfo(size_t *left, size_t *all) { return *left = *all = (size_t)1 << 37, OK; }
int cuMemAlloc(void **out, size_t size) { return allocate(out, size); }
int cuMemFree(void *place) { return release(place); }
int cuMemHostAlloc(void **out, size_t size, unsigned flags) {
    return (void)flags, allocate(out, size);
}
int cuMemFreeHost(void *place) { return release(place); }
int cuMemcpyAsync(void *to, const void *from, size_t size, void *stream) {
    (void)stream;
    if (capturing) return OK;
    if (count == MOST) settle();
    copies[count++] = (Copy){to, from, size};
    return OK;
}
int cuMemsetD8Async(void *to, unsigned char byte, size_t size, void *stream) {
    return (void)to, (void)byte, (void)size, (void)stream, OK;
}

int cuStreamCreate(void **out, unsigned flags) { return (void)flags, give(out); }
int cuStreamDestroy(void *stream) { return (void)stream, OK; }
int cuStreamSynchronize(void *stream) { return (void)stream, settle(); }
int cuStreamBeginCapture(void *stream, int mode) {
    return (void)stream, (void)mode, capturing = 1, OK;
}
int cuStreamEndCapture(void *stream, void **graph) {
    return (void)stream, capturing = 0, give(graph);
}
int cuEventCreate(void **out, unsigned flags) { return (void)flags, give(out); }
int cuEventDestroy(void *event) { return (void)event, OK; }
int cuEventRecord(void *event, void *stream) { return (void)event, (void)stream, OK; }
int cuEventSynchronize(void *event) { return (void)event, OK; }
int cuEventQuery(void *event) { return (void)event, OK; }
int cuStreamQuery(void *stream) { return (void)stream, OK; }
int cuStreamWaitEvent(void *stream, void *event, unsigned flags) {
    return (void)stream, (void)event, (void)flags, OK;
}

int cuModuleLoadData(void **module, const void *image) { return (void)image, give(module); }
int cuModuleUnload(void *module) { return (void)module, OK; }
int cuModuleGetFunction(void **function, void *module, const char *name) {
    return (void)module, (void)name, give(function);
}
int cuFuncLoad(void *function) { return (void)function, OK; }
int cuFuncGetAttribute(int *value, int kind, void *function) {
    (void)function;
    return *value = kind == 8 ? 49152 : 0, OK;
}
int cuFuncSetAttribute(void *function, int kind, int value) {
    return (void)function, (void)kind, (void)value, OK;
}
int cuLaunchKernelEx(const void *launch, void *function, void **arguments, void **extra) {
    return (void)launch, (void)function, (void)arguments, (void)extra, OK;
}
int cuGraphInstantiateWithFlags(void **out, void *graph, unsigned long long flags) {
    return (void)graph, (void)flags, give(out);
}
int cuGraphInstantiate(void **out, void *graph, unsigned long long flags) {
    return cuGraphInstantiateWithFlags(out, graph, flags);
}
int cuGraphUpload(void *graph, void *stream) { return (void)graph, (void)stream, OK; }
int cuGraphLaunch(void *graph, void *stream) { return (void)graph, (void)stream, OK; }
int cuGraphDestroy(void *graph) { return (void)graph, OK; }
int cuGraphExecDestroy(void *graph) { return (void)graph, OK; }

/* The bindings ask here for every call by its plain name; what is not above is not there. */
int cuGetProcAddress_v2(const char *symbol, void **out, int version, uint64_t flags, int *status) {
    (void)flags;
    if (!strcmp(symbol, "cuGetProcAddress")) symbol = "cuGetProcAddress_v2";
    Dl_info self;
    dladdr(&thing, &self);
    void *library = dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    *out = version > 13000 ? NULL : dlsym(library, symbol);
    if (status) *status = *out ? 0 : 1;
    return *out ? OK : NOT_FOUND;
}
