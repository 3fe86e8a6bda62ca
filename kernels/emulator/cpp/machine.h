// The scheduler's state: one machine runs one launch on one OS thread.
#pragma once

#include <setjmp.h>
#include <stdint.h>

#include <vector>

#include "emulator.h"

// Elsewhere, or with EMULATED_UCONTEXT, the C library's contexts do the same at the price of two system calls a switch.
#if defined(__x86_64__) && defined(__linux__) && !defined(EMULATED_UCONTEXT)
#define EMULATED_OWN_SWITCH 1
#else
#include <ucontext.h>
#endif

constexpr unsigned MAX_THREADS = 1024;
constexpr size_t STACK = 128 << 10;
constexpr size_t MAX_SHARED = 256 << 10;

// A suspended flow of control.
struct Context {
#ifdef EMULATED_OWN_SWITCH
    void* stack_pointer = nullptr;
#else
    ucontext_t context;
#endif
};

enum class State : uint8_t { Runnable, Barrier, Warp, Done };

// A copy that cp.async has started.
struct Copy {
    void* to;
    const void* from;
    bool valid;
    unsigned group;
    const void* pc;  // where it was started
};

struct Fiber {
    Context context;
    unsigned char* stack = nullptr;  // its lowest byte; the page before is a guard
    unsigned index = 0;
    State state = State::Done;
    unsigned group = 0;  // of cp.async: groups closed so far
    std::vector<Copy> copies;
};

// Who used two bytes last: see watch.cpp.
struct Cell {
    uint64_t writer, reader;
};

// A live buffer, as emulator_launch gets them: sorted by address.
struct Region {
    uint64_t from, to;
    Cell* cells;
};

struct Lane {
    uint64_t value, result;
    int operand, width;
    void* out;
    const void *a, *b;
};

// What the lanes of a warp have agreed on so far.
struct Warp {
    EmulatedOp op;
    unsigned arrived, ended;
    uint64_t clock;  // at the last barrier or __syncwarp
    const char* file;
    int line;
    Lane lanes[32];
};

struct Machine {
    std::vector<Fiber> fibers;
    Warp warps[MAX_THREADS / 32];
    Context scheduler;
    sigjmp_buf recover;

    const EmulatedKernel* kernel = nullptr;
    void* const* arguments = nullptr;
    unsigned threads = 0, live = 0;

    unsigned runnable[MAX_THREADS];
    unsigned runnables = 0;
    Fiber* running = nullptr;

    unsigned waiting = 0;  // at the barrier
    const char* barrier_file = nullptr;
    int barrier_line = 0;

    uint64_t random = 0;

    unsigned char* shared_area = nullptr;  // MAX_SHARED bytes between guards, open from the end on
    size_t shared_open = 0;                // bytes that are open
    unsigned char* shared = nullptr;
    size_t shared_bytes = 0;

    void* signal_stack = nullptr;

    bool watch = true;  // single accesses: see watch.cpp
    // The clock is the machine's; its upper bits count all launches.
    const Region* regions = nullptr;
    size_t region_count = 0;
    const Region* last_region = nullptr;
    Cell* cells = nullptr;  // of shared memory
    uint64_t clock = 0, launch_clock = 0, block_clock = 0, barrier_clock = 0;

    // The fault, if there was one.
    uint64_t fault_address = 0;       // what it is about, if that is no buffer's
    const void* pc = nullptr;         // where in the kernel
    const char* file = nullptr;       // where in the source, if known
    int line = 0;
    char fault[1024];

    void wake(unsigned index) {
        fibers[index].state = State::Runnable;
        runnable[runnables++] = index;
    }
    // Runs others until the running fiber is chosen again.
    void yield();
    void finish_barrier();

    uint32_t below(uint32_t bound) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        return static_cast<uint32_t>((static_cast<uint64_t>(static_cast<uint32_t>(random >> 32)) * bound) >> 32);
    }
};

// The machine that the calling OS thread is running a kernel on, if any.
extern __thread Machine* emulated_machine;

void switch_context(Context* from, Context* to);
void prepare_context(Context* context, unsigned char* stack, size_t bytes, void (*entry)());

const char* name_of(EmulatedOp op);
const char* short_name(const char* file);  // without its folder

// watch.cpp
void watch_access(const void* p, size_t bytes, bool write);

// memory.cpp
[[noreturn]] void outside_shared(Machine* m, uint64_t address, bool write);
constexpr size_t GUARD = 1 << 20;
unsigned char* map_guarded(size_t bytes);  // page-aligned, GUARD bytes without access on both sides
void unmap_guarded(unsigned char* pages, size_t bytes);
void open_pages(unsigned char* from, size_t bytes, bool open);
size_t page_bytes();
void fill_canary(unsigned char* from, unsigned char* to);
const unsigned char* broken_canary(const unsigned char* from, const unsigned char* to);
void install_signal_handler();
