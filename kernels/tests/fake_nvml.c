// A stand-in for libnvidia-ml beside that for libcuda. Its one GPU lies where the stand-in for libcuda says its device 0
// does. With OLD defined it is that of a driver from before the energy counter. Read from the environment:
//
//   FAKE_NVML_INIT      what nvmlInit_v2 returns (0)
//   FAKE_NVML_NO_BUS    finds no GPU by its place on the bus
//   FAKE_NVML_BLIND     tells no power and no energy
//
// Types are those of nvml.h, written out.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7 };

static int started;
static void* const gpu = (void*)0x60;

#define ON_GPU(d) if (started <= 0) return UNINITIALIZED; if ((d) != gpu) return INVALID_ARGUMENT

int nvmlInit_v2(void) {
    const char* v = getenv("FAKE_NVML_INIT");
    if (v && atoi(v)) return atoi(v);
    started++;
    return SUCCESS;
}

int nvmlShutdown(void) { started--; return started < 0 ? UNINITIALIZED : SUCCESS; }
const char* nvmlErrorString(int status) { return status == NOT_FOUND ? "Not Found" : status == 9 ? "Driver Not Loaded" : NULL; }

int nvmlDeviceGetHandleByPciBusId_v2(const char* id, void** out) {
    if (started <= 0) return UNINITIALIZED;
    *out = gpu;
    return !getenv("FAKE_NVML_NO_BUS") && !strcmp(id, "0000:3b:00.0") ? SUCCESS : NOT_FOUND;
}

int nvmlDeviceGetHandleByUUID(const char* id, void** out) {
    if (started <= 0) return UNINITIALIZED;
    *out = gpu;
    return strcmp(id, "GPU-a0a1a2a3-a4a5-a6a7-a8a9-aaabacadaeaf") ? NOT_FOUND : SUCCESS;
}

int nvmlDeviceGetPowerUsage(void* d, unsigned* out) { ON_GPU(d); *out = 512345; return getenv("FAKE_NVML_BLIND") ? NOT_SUPPORTED : SUCCESS; }
int nvmlDeviceGetTemperature(void* d, unsigned sensor, unsigned* out) { ON_GPU(d); *out = 61; return sensor == 0 ? SUCCESS : INVALID_ARGUMENT; }
int nvmlDeviceGetClockInfo(void* d, unsigned which, unsigned* out) { ON_GPU(d); *out = which == 1 ? 1755 : 3201; return which == 1 || which == 2 ? SUCCESS : INVALID_ARGUMENT; }
int nvmlDeviceGetCurrentClocksThrottleReasons(void* d, unsigned long long* out) { ON_GPU(d); *out = 0x4; return SUCCESS; }

#ifndef OLD
// The counter goes on by two joules and a half at every look.
static unsigned long long counter = 1000;

int nvmlDeviceGetTotalEnergyConsumption(void* d, unsigned long long* out) {
    ON_GPU(d);
    *out = counter += 2500;
    return getenv("FAKE_NVML_BLIND") ? NOT_SUPPORTED : SUCCESS;
}

int nvmlDeviceGetCurrentClocksEventReasons(void* d, unsigned long long* out) { ON_GPU(d); *out = 0x24; return SUCCESS; }

typedef struct { unsigned pid; unsigned long long bytes; unsigned instances[2]; } Process;

// Twenty processes, the memory of the last unknown.
int nvmlDeviceGetComputeRunningProcesses_v3(void* d, unsigned* count, Process* out) {
    ON_GPU(d);
    unsigned room = *count;
    *count = 20;
    if (room < 20) return INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < 20; i++) out[i] = (Process){100 + i, i == 19 ? ~0ull : i * 1000ull, {0, 0}};
    return SUCCESS;
}
#endif

__attribute__((destructor)) static void report(void) {
    if (started) printf("fake: NVML was started %d times more than shut down\n", started);
    fflush(stdout);
}
