// A stand-in for libcuda and libcublasLt, for tests of the driver without a GPU: device memory is host memory, copies
// to the device and to page-locked memory are made as late as CUDA allows, products are plain loops, and a launch prints
// what it was given. It refuses what the real ones refuse or leave undefined. Read from the environment:
//
//   FAKE_VERSION   the CUDA version that the driver supports (13000)
//   FAKE_INIT      what cuInit returns (0)
//   FAKE_COUNT     devices (1)
//   FAKE_MAJOR     major compute capability (9)
//   FAKE_MINOR     minor compute capability (0)
//   FAKE_MODE      compute mode (0)
//   FAKE_MEMORY    bytes of memory (128 MiB)
//   FAKE_OTHERS    bytes of it that other programs use (0)
//   FAKE_PARAMS    bytes of each kernel parameter, as in "8,4,4"
//   FAKE_KERNELS   a file of kernels and their parameters, a line each, as in "name 8,4,4", instead
//   FAKE_DUMB      if set: prints nothing and computes nothing; all memory is and stays zero but for what is copied there and
//                  the flag that every gradient is finite
//   FAKE_FAIL      what fails, as in "cuMemAllocAsync@7+:2,cuLaunchKernel@90:719": the 90th launch returns 719; with a +
//                  every one from then on does; with a ~ that one does not tell, but every later call does. After an
//                  error that breaks a context, every later call returns it too
//   FAKE_CALLS     a file to write the number of calls of each function to at the end, and as `peak` the most bytes in use
//
// Types are those of cuda.h and cublasLt.h, written out: no toolkit is needed.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_FOUND = 500, ILLEGAL_ADDRESS = 700 };

static long number(const char* name, long otherwise) {
    const char* v = getenv(name);
    return v ? atol(v) : otherwise;
}

static int dumb(void) {
    static int known = -1;
    if (known < 0) known = getenv("FAKE_DUMB") != NULL;
    return known;
}

static int fault(const char* what) {
    fprintf(dumb() ? stderr : stdout, "fake: %s\n", what);
    fflush(stdout);
    return ILLEGAL_ADDRESS;
}

// --- failing when told to ---

static struct { const char* name; long count; } calls[256];
static int broken;

static long count(const char* name) {
    for (int i = 0; i < 256; i++) {
        if (!calls[i].name) calls[i].name = name;
        if (strcmp(calls[i].name, name) == 0) return ++calls[i].count;
    }
    return 0;
}

// The errors that leave a context of no use.
static int breaks(int code) {
    return code == 214 || code == 220 || code == 226 || code == 700 || code == 702 || code == 710 || (code >= 714 && code <= 719) ||
           code == 999;
}

static int called(const char* name) {
    long n = count(name);
    if (broken) return broken;
    size_t length = strlen(name);
    for (const char* v = getenv("FAKE_FAIL"); v && *v; v = strchr(v, ',') ? strchr(v, ',') + 1 : "") {
        if (strncmp(v, name, length) != 0 || v[length] != '@') continue;
        char* end;
        long at = strtol(v + length + 1, &end, 10);
        int on = *end == '+', late = *end == '~';
        int code = (int)strtol(end + (on || late ? 2 : 1), NULL, 10);
        if (n != at && !(on && n > at)) continue;
        if (late || breaks(code)) broken = code;
        return late ? 0 : code;
    }
    return 0;
}

#define CALL { int code = called(__func__); if (code) return code; }
// cuBLASLt has words of its own: CUBLAS_STATUS_EXECUTION_FAILED for what has become of the context.
#define LT_CALL { int code = called(__func__); if (code) return broken ? 13 : code; }

// What was made and not yet given back; anything left at exit is a leak.
static long contexts, streams, events, modules, pinned, handles, descriptors;
static __thread void* current;
static void *const context = (void*)0x10, *const stream = (void*)0x20, *const pool = (void*)0x30;

#define IN_CONTEXT if (current != context || contexts == 0) return INVALID_CONTEXT
#define ON_STREAM(s) IN_CONTEXT; if ((s) != stream || streams == 0) return INVALID_HANDLE

// --- memory and the queue ---

typedef struct { char* at; size_t bytes; } Block;
static Block blocks[1 << 16];
static size_t block_count;
static uint64_t used, peak;

static int inside(const void* at, size_t bytes) {
    for (size_t i = 0; i < block_count; i++)
        if ((const char*)at >= blocks[i].at && (const char*)at + bytes <= blocks[i].at + blocks[i].bytes) return 1;
    return 0;
}

typedef struct { char* to; const char* from; size_t bytes, rows, pitch; } Copy;
static Copy queue[65536];
static long queued, done;

static void run_until(long position) {
    for (; done < position; done++) {
        const Copy* c = &queue[done % 65536];
        for (size_t row = 0; row < c->rows; row++) memcpy(c->to + row * c->pitch, c->from + row * c->bytes, c->bytes);
    }
}

int cuMemAllocAsync(uint64_t* out, size_t bytes, void* s) {
    CALL
    ON_STREAM(s);
    if (bytes == 0) return INVALID_VALUE;
    if (used + bytes + number("FAKE_OTHERS", 0) > (uint64_t)number("FAKE_MEMORY", 128 << 20)) return OUT_OF_MEMORY;
    if (block_count == sizeof blocks / sizeof *blocks) return fault("more blocks than the stand-in can count");
    char* at = aligned_alloc(256, (bytes + 255) / 256 * 256);
    memset(at, dumb() ? 0 : 0xff, bytes);
    blocks[block_count++] = (Block){at, bytes};
    used += bytes;
    if (used > peak) peak = used;
    *out = (uint64_t)at;
    return OK;
}

int cuMemFreeAsync(uint64_t address, void* s) {
    CALL
    ON_STREAM(s);
    run_until(queued);
    for (size_t i = 0; i < block_count; i++)
        if (blocks[i].at == (char*)address) {
            used -= blocks[i].bytes;
            memset(blocks[i].at, 0xee, blocks[i].bytes);
            free(blocks[i].at);
            blocks[i] = blocks[--block_count];
            return OK;
        }
    return fault("freed what was not allocated");
}

int cuMemGetInfo_v2(size_t* free, size_t* total) {
    IN_CONTEXT;
    *total = number("FAKE_MEMORY", 128 << 20);
    *free = *total - used - number("FAKE_OTHERS", 0);
    return OK;
}

static Block locked[64];
static size_t locked_count;

static int is_locked(const void* at) {
    for (size_t i = 0; i < locked_count; i++)
        if ((const char*)at >= locked[i].at && (const char*)at < locked[i].at + locked[i].bytes) return 1;
    return 0;
}

int cuMemHostAlloc(void** out, size_t bytes, unsigned flags) {
    CALL
    IN_CONTEXT;
    if (locked_count == 64) return fault("page-locked memory without end");
    *out = malloc(bytes);
    memset(*out, 0xdd, bytes);
    locked[locked_count++] = (Block){*out, bytes};
    pinned++;
    return flags ? INVALID_VALUE : OK;
}

int cuMemFreeHost(void* at) {
    CALL
    IN_CONTEXT;
    for (size_t i = 0; i < locked_count; i++)
        if (locked[i].at == (char*)at) {
            for (long j = done; j < queued; j++) {
                const char *to = queue[j % 65536].to, *from = queue[j % 65536].from;
                const char *start = locked[i].at, *end = start + locked[i].bytes;
                if ((to >= start && to < end) || (from >= start && from < end)) return fault("freed host memory that a copy still uses");
            }
            locked[i] = locked[--locked_count];
            free(at);
            pinned--;
            return OK;
        }
    return fault("freed host memory that was not allocated");
}

int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* s) {
    CALL
    ON_STREAM(s);
    if (!inside((void*)to, bytes)) return fault("a copy leaves its memory");
    if (queued - done == 65536) run_until(queued);
    queue[queued++ % 65536] = (Copy){(char*)to, from, bytes, 1, bytes};
    return OK;
}

// CUDA_MEMCPY2D of cuda.h; only from the host (1) to the device (2), from rows without gaps.
typedef struct {
    size_t from_x, from_y;
    int from_type;
    const void* from_host;
    uint64_t from_device;
    void* from_array;
    size_t from_pitch, to_x, to_y;
    int to_type;
    void* to_host;
    uint64_t to_device;
    void* to_array;
    size_t to_pitch, width, height;
} Copy2D;

int cuMemcpy2DAsync_v2(const Copy2D* c, void* s) {
    CALL
    ON_STREAM(s);
    if (c->from_type != 1 || c->to_type != 2 || c->from_pitch != c->width || c->to_pitch < c->width || !c->height) return INVALID_VALUE;
    if (c->from_x || c->from_y || c->to_x || c->to_y || c->from_array || c->to_array) return INVALID_VALUE;
    if (!inside((void*)c->to_device, (c->height - 1) * c->to_pitch + c->width)) return fault("a copy leaves its memory");
    if (queued - done == 65536) run_until(queued);
    queue[queued++ % 65536] = (Copy){(char*)c->to_device, c->from_host, c->width, c->height, c->to_pitch};
    return OK;
}

int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* s) {
    CALL
    ON_STREAM(s);
    if (!inside((void*)from, bytes)) return fault("a copy leaves its memory");
    if (is_locked(to)) {
        if (queued - done == 65536) run_until(queued);
        queue[queued++ % 65536] = (Copy){to, (void*)from, bytes, 1, bytes};
        return OK;
    }
    run_until(queued);
    memcpy(to, (void*)from, bytes);
    return OK;
}

int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void* s) {
    CALL
    ON_STREAM(s);
    run_until(queued);
    if (!inside((void*)from, bytes) || !inside((void*)to, bytes)) return fault("a copy leaves its memory");
    memcpy((void*)to, (void*)from, bytes);
    return OK;
}

int cuMemsetD2D8Async(uint64_t to, size_t pitch, unsigned char value, size_t width, size_t height, void* s) {
    CALL
    ON_STREAM(s);
    run_until(queued);
    if (pitch < width || !inside((void*)to, (height - 1) * pitch + width)) return fault("a fill leaves its memory");
    for (size_t row = 0; row < height; row++) memset((char*)to + row * pitch, value, width);
    return OK;
}

int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void* s) {
    CALL
    return cuMemsetD2D8Async(to, bytes, value, bytes, 1, s);
}

int cuDeviceGetDefaultMemPool(void** out, int device) { CALL *out = pool; return device; }
int cuMemPoolTrimTo(void* p, size_t keep) { CALL return p == pool && keep == 0 ? OK : INVALID_VALUE; }

int cuMemPoolGetAttribute(void* p, int which, uint64_t* out) {
    CALL
    if (p != pool) return INVALID_VALUE;
    *out = which == 8 ? peak : used;
    return OK;
}

int cuMemPoolSetAttribute(void* p, int which, uint64_t* value) {
    CALL
    if (p != pool) return INVALID_VALUE;
    if (which == 4) return *value == UINT64_MAX ? OK : INVALID_VALUE;
    if (which != 8 || *value != 0) return INVALID_VALUE;
    peak = used;
    return OK;
}

// --- set-up ---

int cuInit(unsigned flags) { CALL return flags ? INVALID_VALUE : (int)number("FAKE_INIT", 0); }
int cuDriverGetVersion(int* out) { *out = (int)number("FAKE_VERSION", 13000); return OK; }

static const struct { int code; const char *name, *text; } errors[] = {
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {46, "CUDA_ERROR_DEVICE_UNAVAILABLE", "CUDA-capable device(s) is/are busy or unavailable"},
    {209, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {214, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {802, "CUDA_ERROR_SYSTEM_NOT_READY", "system not yet initialized"},
    {0, "CUDA_ERROR", "some error"},
};

static int entry(int code) {
    int i = 0;
    while (errors[i].code != code && errors[i].code) i++;
    return i;
}

int cuGetErrorString(int error, const char** out) { *out = errors[entry(error)].text; return OK; }
int cuGetErrorName(int error, const char** out) { *out = errors[entry(error)].name; return OK; }
int cuDeviceGetCount(int* out) { CALL *out = (int)number("FAKE_COUNT", 1); return OK; }
int cuDeviceGet(int* out, int ordinal) { CALL *out = ordinal; return OK; }
int cuDeviceGetName(char* out, int bytes, int device) { CALL (void)device; snprintf(out, bytes, "Fake GPU"); return OK; }
int cuDeviceTotalMem_v2(size_t* out, int device) { CALL *out = number("FAKE_MEMORY", 128 << 20); return device; }

int cuDeviceGetAttribute(int* out, int which, int device) {
    CALL
    switch (which) {
        case 16: *out = 132; return device;
        case 20: *out = (int)number("FAKE_MODE", 0); return device;
        case 75: *out = (int)number("FAKE_MAJOR", 9); return device;
        case 76: *out = (int)number("FAKE_MINOR", 0); return device;
        case 97: *out = 232448; return device;
        case 115: *out = 1; return device;
        default: return INVALID_VALUE;
    }
}

int cuDeviceGetPCIBusId(char* out, int bytes, int device) { snprintf(out, bytes, "0000:3b:%02x.0", device); return OK; }

int cuDeviceGetUuid_v2(char* out, int device) {
    for (int i = 0; i < 16; i++) out[i] = (char)(0xa0 + i + device);
    return OK;
}

int cuDevicePrimaryCtxRetain(void** out, int device) { CALL contexts++; *out = context; return device; }

int cuDevicePrimaryCtxRelease_v2(int device) {
    CALL
    contexts--;
    return block_count == 0 ? device : fault("memory is left");
}

int cuCtxSetCurrent(void* c) { current = c; return OK; }
int cuStreamCreate(void** out, unsigned flags) { CALL IN_CONTEXT; streams++; *out = stream; return flags == 1 ? OK : INVALID_VALUE; }
int cuStreamSynchronize(void* s) { CALL ON_STREAM(s); run_until(queued); return OK; }
int cuStreamDestroy_v2(void* s) { CALL ON_STREAM(s); streams--; return OK; }

// --- events; the clock moves with products only ---

typedef struct { long position; double at; } Event;
static double clock_ms;

int cuEventCreate(Event** out, unsigned flags) { CALL IN_CONTEXT; (void)flags; events++; *out = calloc(1, sizeof(Event)); return OK; }
int cuEventRecord(Event* e, void* s) { CALL ON_STREAM(s); e->position = queued; e->at = clock_ms; return OK; }
int cuEventSynchronize(Event* e) { CALL IN_CONTEXT; run_until(e->position); return OK; }
int cuEventElapsedTime_v2(float* out, Event* a, Event* b) { CALL IN_CONTEXT; *out = (float)(b->at - a->at); return OK; }
int cuEventDestroy_v2(Event* e) { CALL IN_CONTEXT; events--; free(e); return OK; }

// --- kernels ---

static int shared_limit = 48 << 10;

int cuModuleLoadData(void** out, const void* image) {
    CALL
    IN_CONTEXT;
    // The first word of a fatbin, at the alignment that its header has.
    if ((uintptr_t)image % 8 || *(const uint32_t*)image != 0xba55ed50) return INVALID_VALUE;
    modules++;
    *out = (void*)image;
    return OK;
}

int cuModuleUnload(void* module) { CALL IN_CONTEXT; modules--; return module ? OK : INVALID_VALUE; }
typedef struct { char name[128], parameters[256]; } Function;
static Function functions[512];

static int is_function(const Function* f) { return f >= functions && f < functions + 512 && *f->name; }

int cuModuleGetFunction(Function** out, void* module, const char* name) {
    CALL
    IN_CONTEXT;
    if (!module || !*name) return NOT_FOUND;
    int i = 0;
    while (*functions[i].name && strcmp(functions[i].name, name) != 0) i++;
    *out = &functions[i];
    snprintf(functions[i].name, sizeof functions[i].name, "%s", name);
    const char* same = getenv("FAKE_PARAMS");
    if (same) snprintf(functions[i].parameters, sizeof functions[i].parameters, "%s", same);
    const char* path = getenv("FAKE_KERNELS");
    FILE* file = path ? fopen(path, "r") : NULL;
    char line[512];
    while (file && fgets(line, sizeof line, file)) {
        char* space = strchr(line, ' ');
        if (!space || strncmp(line, name, space - line) != 0 || name[space - line]) continue;
        snprintf(functions[i].parameters, sizeof functions[i].parameters, "%.*s", (int)strcspn(space + 1, "\n"), space + 1);
    }
    if (file) fclose(file);
    return OK;
}

int cuFuncSetAttribute(Function* f, int which, int value) {
    CALL
    IN_CONTEXT;
    if (is_function(f) && which == 9 && value == 100) return OK;
    if (!is_function(f) || which != 8 || value > 232448) return INVALID_VALUE;
    shared_limit = value;
    return OK;
}

int cuFuncGetParamInfo(Function* f, size_t index, size_t* offset, size_t* size) {
    if (!is_function(f) || !*f->parameters) return INVALID_VALUE;
    const char* v = f->parameters;
    for (*offset = 0; index > 0; index--) {
        *offset += strtoul(v, (char**)&v, 10);
        if (*v++ != ',') return INVALID_VALUE;
    }
    *size = strtoul(v, NULL, 10);
    return OK;
}

int cuLaunchKernel(Function* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   void* s, void** params, void** extra) {
    CALL
    ON_STREAM(s);
    if (!is_function(f) || extra || (int)shared > shared_limit || gx * gy * gz == 0 || by * bz != 1) return INVALID_VALUE;
    run_until(queued);
    if (dumb()) {
        // But for the flag that an update takes place (norm.cu): a run would stop without it.
        if (strcmp(f->name, "norm_finish") == 0) {
            float* out = *(float**)params[4];
            if (!inside(out, 12)) return fault("results outside their memory");
            out[1] = out[2] = 1;
        }
        return OK;
    }
    printf("launch %u,%u,%u %u %u", gx, gy, gz, bx, shared);
    size_t offset, size;
    for (size_t i = 0; cuFuncGetParamInfo(f, i, &offset, &size) == OK; i++) {
        uint64_t value = 0;
        memcpy(&value, params[i], size);
        printf(" %llx", (unsigned long long)value);
    }
    printf("\n");
    fflush(stdout);
    return OK;
}

// --- cuBLASLt ---

enum { NOT_SUPPORTED = 15, LT_INVALID = 7, F32 = 0, BF16 = 14 };
typedef struct { int compute, scale, trans_a, trans_b; } Desc;
typedef struct { int type; uint64_t rows, cols; int64_t ld; } Layout;
typedef struct { uint64_t workspace; uint32_t reduction, aligned[4]; } Preference;
typedef struct { uint64_t data[8]; } Algorithm;
typedef struct { Algorithm algorithm; size_t workspace; int state; float waves; int reserved[4]; } Found;

size_t cublasLtGetVersion(void) { return 130000; }
int cublasLtCreate(void** out) { LT_CALL handles++; *out = (void*)0x50; return OK; }
int cublasLtDestroy(void* handle) { handles--; return handle ? OK : LT_INVALID; }
int cublasLtMatmulDescDestroy(void* d) { descriptors--; free(d); return OK; }
int cublasLtMatrixLayoutDestroy(void* d) { descriptors--; free(d); return OK; }
int cublasLtMatmulPreferenceDestroy(void* d) { descriptors--; free(d); return OK; }

int cublasLtMatmulDescCreate(Desc** out, int compute, int scale) {
    descriptors++;
    *out = calloc(1, sizeof(Desc));
    **out = (Desc){compute, scale, 0, 0};
    return compute == 68 && scale == F32 ? OK : LT_INVALID;
}

int cublasLtMatmulDescSetAttribute(Desc* d, int which, const int* value, size_t bytes) {
    if (bytes != 4 || (which != 3 && which != 4)) return LT_INVALID;
    *(which == 3 ? &d->trans_a : &d->trans_b) = *value;
    return OK;
}

int cublasLtMatrixLayoutCreate(Layout** out, int type, uint64_t rows, uint64_t cols, int64_t ld) {
    descriptors++;
    *out = calloc(1, sizeof(Layout));
    **out = (Layout){type, rows, cols, ld};
    return rows && cols && ld >= (int64_t)rows && (type == BF16 || type == F32) ? OK : LT_INVALID;
}

int cublasLtMatmulPreferenceCreate(Preference** out) {
    descriptors++;
    *out = calloc(1, sizeof(Preference));
    **out = (Preference){0, 7, {256, 256, 256, 256}};
    return OK;
}

int cublasLtMatmulPreferenceSetAttribute(Preference* p, int which, const void* value, size_t bytes) {
    if (which == 1 && bytes == 8) memcpy(&p->workspace, value, 8);
    else if (which == 3 && bytes == 4) memcpy(&p->reduction, value, 4);
    else if (which >= 5 && which <= 8 && bytes == 4) memcpy(&p->aligned[which - 5], value, 4);
    else return LT_INVALID;
    return OK;
}

// Four candidates: the second fails when run, the third is the fastest. Each remembers the alignment it was found for.
int cublasLtMatmulAlgoGetHeuristic(void* handle, Desc* d, Layout* a, Layout* b, Layout* c, Layout* out, Preference* p,
                                   int room, Found* found, int* count) {
    LT_CALL
    (void)d, (void)out;
    if (!handle || p->reduction & ~2u || room < 4 || a->type != BF16 || b->type != BF16 || c->type == -1) return LT_INVALID;
    for (int i = 0; i < 4; i++) {
        found[i] = (Found){{{i + 1}}, 1 << 20, OK, 1, {0}};
        for (int j = 0; j < 4; j++) found[i].algorithm.data[j + 1] = p->aligned[j];
    }
    *count = 4;
    return p->workspace >= 1 << 20 ? OK : LT_INVALID;
}

static float bf16(const void* m, uint64_t at) {
    uint32_t bits = (uint32_t)((const uint16_t*)m)[at] << 16;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}

static int reachable(const void* m, const Layout* l) {
    return inside(m, ((l->cols - 1) * l->ld + l->rows) * (l->type == F32 ? 4 : 2));
}

int cublasLtMatmul(void* handle, Desc* d, const float* alpha, const void* a, Layout* la, const void* b, Layout* lb,
                   const float* beta, const void* c, Layout* lc, void* out, Layout* ld, const Algorithm* algorithm,
                   void* workspace, size_t workspace_bytes, void* s) {
    LT_CALL
    ON_STREAM(s);
    run_until(queued);
    uint64_t m = ld->rows, n = ld->cols, k = d->trans_a ? la->rows : la->cols;
    if (!handle || (d->trans_a ? la->cols : la->rows) != m || (d->trans_b ? lb->rows : lb->cols) != n ||
        (d->trans_b ? lb->cols : lb->rows) != k || lc->rows != m || lc->cols != n)
        return LT_INVALID;
    const uint64_t* aligned = &algorithm->data[1];
    if ((uintptr_t)a % aligned[0] || (uintptr_t)b % aligned[1] || (uintptr_t)c % aligned[2] || (uintptr_t)out % aligned[3])
        return fault("an operand is less aligned than was said");
    if (!inside(workspace, workspace_bytes) || !reachable(a, la) || !reachable(b, lb) || !reachable(out, ld) ||
        (*beta != 0 && !reachable(c, lc)))
        return fault("a product leaves its memory");
    if (algorithm->data[0] == 2) return NOT_SUPPORTED;
    clock_ms += algorithm->data[0] == 3 ? 1 : 2;
    if (dumb()) return OK;
    for (uint64_t j = 0; j < n; j++)
        for (uint64_t i = 0; i < m; i++) {
            float sum = 0;
            for (uint64_t p = 0; p < k; p++)
                sum += bf16(a, d->trans_a ? i * la->ld + p : p * la->ld + i) * bf16(b, d->trans_b ? p * lb->ld + j : j * lb->ld + p);
            uint64_t at = j * ld->ld + i;
            float old = *beta == 0 ? 0 : lc->type == F32 ? ((const float*)c)[j * lc->ld + i] : bf16(c, j * lc->ld + i);
            float v = *alpha * sum + (*beta == 0 ? 0 : *beta * old);
            uint32_t bits;
            memcpy(&bits, &v, 4);
            if (ld->type == F32) ((float*)out)[at] = v;
            else ((uint16_t*)out)[at] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
        }
    printf("product by %llu\n", (unsigned long long)algorithm->data[0]);
    fflush(stdout);
    return OK;
}

__attribute__((destructor)) static void report(void) {
    const char* path = getenv("FAKE_CALLS");
    FILE* file = path ? fopen(path, "w") : NULL;
    for (int i = 0; file && i < 256 && calls[i].name; i++) fprintf(file, "%s %ld\n", calls[i].name, calls[i].count);
    if (file) fprintf(file, "peak %llu\n", (unsigned long long)peak);
    if (file) fclose(file);
    if (dumb()) return;
    printf("left: contexts %ld streams %ld events %ld modules %ld pinned %ld handles %ld descriptors %ld\n", contexts, streams,
           events, modules, pinned, handles, descriptors);
    fflush(stdout);
}
