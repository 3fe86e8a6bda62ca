// Runs the blocks of a launch one after the other, and the threads of a block as fibers.

#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <memory>
#include <mutex>

#include "machine.h"

__thread uint3 threadIdx, blockIdx;
__thread dim3 blockDim, gridDim;
__thread unsigned char* emulated_shared_bytes;
__thread Machine* emulated_machine;

// ---- Fibers ------------------------------------------------------------------------------------------------------------

#ifdef EMULATED_OWN_SWITCH
// Saves what the System V ABI asks a function to keep, and goes on where `to` was saved.
extern "C" void emulated_switch(void** from, void* to);
asm(R"(
.text
.p2align 4
.globl emulated_switch
.hidden emulated_switch
.type emulated_switch, @function
emulated_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulated_switch, . - emulated_switch
)");

void switch_context(Context* from, Context* to) { emulated_switch(&from->stack_pointer, to->stack_pointer); }

void prepare_context(Context* context, unsigned char* stack, size_t bytes, void (*entry)()) {
    void** top = reinterpret_cast<void**>(stack + bytes);
    // As after a call: the stack pointer is 8 past a multiple of 16, with nowhere to return to.
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    context->stack_pointer = top;
}
#else
void switch_context(Context* from, Context* to) { swapcontext(&from->context, &to->context); }

void prepare_context(Context* context, unsigned char* stack, size_t bytes, void (*entry)()) {
    getcontext(&context->context);
    context->context.uc_stack.ss_sp = stack;
    context->context.uc_stack.ss_size = bytes;
    context->context.uc_link = nullptr;
    makecontext(&context->context, entry, 0);
}
#endif

const char* short_name(const char* file) {
    const char* slash = strrchr(file, '/');
    return slash == nullptr ? file : slash + 1;
}

// ---- Scheduling --------------------------------------------------------------------------------------------------------

// Leaves `from` for a runnable fiber, or for the scheduler if there is none.
static void leave(Machine* m, Context* from) {
    Context* to = &m->scheduler;
    if (m->runnables > 0) {
        const unsigned pick = m->below(m->runnables);
        const unsigned index = m->runnable[pick];
        m->runnable[pick] = m->runnable[--m->runnables];
        m->running = &m->fibers[index];
        threadIdx.x = index;
        to = &m->running->context;
        if (to == from) return;
    } else {
        m->running = nullptr;
    }
    switch_context(from, to);
}

void Machine::yield() { leave(this, &running->context); }

void Machine::finish_barrier() {
    waiting = 0;
    barrier_clock = ++clock;
    for (unsigned i = 0; i < threads; i++) {
        if (fibers[i].state == State::Barrier) wake(i);
    }
}

void emulated_syncthreads(const char* file, int line) {
    Machine* m = emulated_machine;
    m->pc = __builtin_return_address(0);
    if (m->waiting > 0 && (m->barrier_line != line || (m->barrier_file != file && strcmp(m->barrier_file, file) != 0))) {
        char text[512];
        snprintf(text, sizeof text, "reached a barrier while others wait at another one (%s:%d)",
                 short_name(m->barrier_file), m->barrier_line);
        emulated_fault(text, file, line);
    }
    m->barrier_file = file;
    m->barrier_line = line;
    m->running->state = State::Barrier;
    if (++m->waiting == m->live) m->finish_barrier();
    m->yield();
}

static void end_thread(Machine* m) {
    Fiber* fiber = m->running;
    m->pc = nullptr;
    Warp& warp = m->warps[fiber->index / 32];
    if (!fiber->copies.empty()) {
        m->pc = fiber->copies.front().pc;
        emulated_fault("ended without a wait for the copy to shared memory that it started");
    }
    if (warp.arrived > 0) {
        char text[512];
        snprintf(text, sizeof text, "ended while other lanes of its warp wait in %s", name_of(warp.op));
        emulated_fault(text, warp.file, warp.line);
    }
    warp.ended++;
    fiber->state = State::Done;
    m->live--;
    if (m->live > 0 && m->waiting == m->live) m->finish_barrier();
}

static void fiber_entry() {
    Machine* m = emulated_machine;
    m->kernel->call(m->kernel->function, m->arguments);
    end_thread(m);
    leave(m, &m->running->context);
    abort();
}

// ---- Faults ------------------------------------------------------------------------------------------------------------

void emulated_fault(const char* what, const char* file, int line) {
    Machine* m = emulated_machine;
    snprintf(m->fault, sizeof m->fault, "%s", what);
    m->file = file;
    m->line = line;
    siglongjmp(m->recover, 1);
}

void emulated_unaligned(const void* pointer, unsigned bytes, const char* file, int line) {
    char text[256];
    snprintf(text, sizeof text, "used address %p, which is not a multiple of %u", pointer, bytes);
    emulated_fault(text, file, line);
}

// Why nothing can run any more although threads are left.
static void describe_deadlock(Machine* m) {
    int at_barrier = -1, in_warp = -1;
    unsigned waiting = 0;
    for (unsigned i = 0; i < m->threads; i++) {
        if (m->fibers[i].state == State::Barrier) at_barrier = static_cast<int>(i), waiting++;
        if (m->fibers[i].state == State::Warp && in_warp < 0) in_warp = static_cast<int>(i);
    }
    size_t used = 0;
    auto say = [&](auto... values) {
        const int n = snprintf(m->fault + used, sizeof m->fault - used, values...);
        used = static_cast<size_t>(n) + used < sizeof m->fault ? used + static_cast<size_t>(n) : sizeof m->fault - 1;
    };
    say("%s", "waits for ever:");
    if (in_warp >= 0) {
        const Warp& warp = m->warps[in_warp / 32];
        say(" thread %d and %u other lanes of its warp wait in %s (%s:%d)", in_warp, warp.arrived - 1, name_of(warp.op),
            short_name(warp.file), warp.line);
    }
    if (at_barrier >= 0) {
        say("%s %u of %u threads wait at the barrier (%s:%d)", in_warp >= 0 ? "," : "", waiting, m->live,
            short_name(m->barrier_file), m->barrier_line);
    }
}

// ---- Launches ----------------------------------------------------------------------------------------------------------

extern const EmulatedTable* const emulated_tables[];
extern const unsigned emulated_table_count;

static const EmulatedKernel* find_kernel(const char* name) {
    for (unsigned t = 0; t < emulated_table_count; t++) {
        for (unsigned k = 0; k < emulated_tables[t]->count; k++) {
            if (strcmp(emulated_tables[t]->kernels[k].name, name) == 0) return &emulated_tables[t]->kernels[k];
        }
    }
    return nullptr;
}

// The name of the kernel of that number in all tables, with the number and kinds of its parameters; null past the last.
extern "C" const char* emulator_kernel(unsigned index, unsigned* count, const unsigned** kinds) {
    for (unsigned t = 0; t < emulated_table_count; t++) {
        const EmulatedTable& table = *emulated_tables[t];
        if (index < table.count) {
            *count = table.kernels[index].parameters;
            *kinds = table.kernels[index].kinds;
            return table.kernels[index].name;
        }
        index -= table.count;
    }
    return nullptr;
}

extern "C" Cell* emulator_cells(size_t bytes);

constexpr size_t SIGNAL_STACK = 64 << 10;

// Stacks are spread over the cache: at equal offsets from a page they would all fall into the same lines.
static size_t colour(unsigned index) { return index % 31 * 128; }

static bool grow(Machine* m, unsigned threads) {
    if (m->shared_area == nullptr) {
        m->shared_area = map_guarded(MAX_SHARED);
        m->signal_stack = malloc(SIGNAL_STACK);
        m->cells = emulator_cells(MAX_SHARED);
        if (m->shared_area == nullptr || m->signal_stack == nullptr || m->cells == nullptr) return false;
        open_pages(m->shared_area, MAX_SHARED, false);
    }
    if (m->fibers.capacity() < MAX_THREADS) m->fibers.reserve(MAX_THREADS);
    while (m->fibers.size() < threads) {
        const unsigned count = 32;
        const size_t each = STACK + page_bytes();
        void* all = mmap(nullptr, count * each, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (all == MAP_FAILED) return false;
        for (unsigned i = 0; i < count; i++) {
            unsigned char* guard = static_cast<unsigned char*>(all) + i * each;
            open_pages(guard, page_bytes(), false);
            Fiber fiber;
            fiber.stack = guard + page_bytes();
            fiber.index = static_cast<unsigned>(m->fibers.size());
            m->fibers.push_back(std::move(fiber));
        }
    }
    return true;
}

static void set_shared(Machine* m, size_t bytes) {
    const size_t rounded = (bytes + 15) / 16 * 16;
    const size_t open = (bytes + page_bytes() - 1) / page_bytes() * page_bytes();
    unsigned char* end = m->shared_area + MAX_SHARED;
    if (open != m->shared_open) {
        open_pages(m->shared_area, MAX_SHARED, false);
        open_pages(end - open, open, true);
        m->shared_open = open;
    }
    m->shared = end - rounded;
    m->shared_bytes = bytes;
    emulated_shared_bytes = m->shared;
    fill_canary(end - open, m->shared);
    fill_canary(m->shared + bytes, end);
}

static void run_block(Machine* m) {
    memset(m->shared, 0xff, m->shared_bytes);
    m->live = m->threads;
    m->runnables = m->waiting = 0;
    m->block_clock = m->barrier_clock = ++m->clock;
    memset(m->warps, 0, (m->threads + 31) / 32 * sizeof(Warp));
    for (unsigned i = 0; i < m->threads; i++) {
        Fiber& fiber = m->fibers[i];
        fiber.group = 0;
        fiber.copies.clear();
        prepare_context(&fiber.context, fiber.stack, STACK - colour(i), fiber_entry);
        m->wake(i);
    }
    leave(m, &m->scheduler);
    if (m->live > 0) {
        m->pc = nullptr;
        describe_deadlock(m);
        siglongjmp(m->recover, 2);
    }
    unsigned char* end = m->shared_area + MAX_SHARED;
    const unsigned char* at = broken_canary(end - m->shared_open, m->shared);
    if (at == nullptr) at = broken_canary(m->shared + m->shared_bytes, end);
    if (at != nullptr) {
        m->pc = nullptr;
        snprintf(m->fault, sizeof m->fault, "wrote outside its shared memory: at byte %lld of %zu",
                 static_cast<long long>(at - m->shared), m->shared_bytes);
        siglongjmp(m->recover, 2);
    }
}

static void run_grid(Machine* m, const unsigned grid[3]) {
    const uint64_t blocks = static_cast<uint64_t>(grid[0]) * grid[1] * grid[2];
    std::vector<uint32_t> order(blocks);
    for (uint64_t i = 0; i < blocks; i++) order[i] = static_cast<uint32_t>(i);
    for (uint64_t i = blocks; i > 1; i--) std::swap(order[i - 1], order[m->below(static_cast<uint32_t>(i))]);
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {m->threads, 1, 1};
    threadIdx = {0, 0, 0};
    if (sigsetjmp(m->recover, 1) == 0) {
        for (uint64_t i = 0; i < blocks; i++) {
            blockIdx = {order[i] % grid[0], order[i] / grid[0] % grid[1], order[i] / grid[0] / grid[1]};
            run_block(m);
        }
        m->fault[0] = 0;
    }
}

static std::mutex pool_lock;
static std::vector<std::unique_ptr<Machine>> pool;
static uint64_t launches = 0;

static std::unique_ptr<Machine> take_machine() {
    const std::lock_guard<std::mutex> lock(pool_lock);
    std::unique_ptr<Machine> m;
    if (pool.empty()) {
        m = std::make_unique<Machine>();
    } else {
        m = std::move(pool.back());
        pool.pop_back();
    }
    // Later than all that its cells have seen.
    m->clock = m->launch_clock = ++launches << 30;
    return m;
}

extern "C" {

struct EmulatedLaunch {
    const char* kernel;
    unsigned grid[3];
    unsigned threads;
    unsigned shared;
    unsigned count;
    void* const* arguments;
    const unsigned* kinds;
    const Region* regions;
    size_t region_count;
    uint64_t seed;
    unsigned watch;
};

struct EmulatedFault {
    char text[1024];
    uint64_t address;  // what it is about, if that is no buffer's
    uint64_t pc;       // the place in the kernel's code, from the start of the program as loaded, or 0
    const char* file;  // or null
    int line;
};

// Runs a kernel to its end. On a fault it returns 1 and tells of it in `fault`.
int emulator_launch(const EmulatedLaunch* launch, EmulatedFault* fault) {
    char* const text = fault->text;
    const size_t bytes = sizeof fault->text;
    memset(fault, 0, sizeof *fault);
    const EmulatedKernel* kernel = find_kernel(launch->kernel);
    if (kernel == nullptr) return snprintf(text, bytes, "there is no kernel of this name"), 1;
    if (launch->count != kernel->parameters) {
        return snprintf(text, bytes, "was given %u arguments but takes %u", launch->count, kernel->parameters), 1;
    }
    static const char* const KINDS[] = {"an address", "a 32-bit integer", "a 64-bit integer", "a float"};
    for (unsigned i = 0; i < launch->count; i++) {
        if (launch->kinds[i] != kernel->kinds[i]) {
            return snprintf(text, bytes, "argument %u is %s but the kernel takes %s", i, KINDS[launch->kinds[i]],
                            KINDS[kernel->kinds[i]]), 1;
        }
    }
    if (launch->threads == 0 || launch->threads > kernel->threads || launch->threads > MAX_THREADS) {
        return snprintf(text, bytes, "was launched with %u threads per block but is made for 1 to %u", launch->threads,
                        kernel->threads), 1;
    }
    const unsigned* grid = launch->grid;
    if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0 || grid[0] > 0x7fffffff || grid[1] > 65535 || grid[2] > 65535) {
        return snprintf(text, bytes, "was launched on a grid of %u x %u x %u blocks, which no GPU has", grid[0], grid[1],
                        grid[2]), 1;
    }
    if (launch->shared > 227 * 1024) {
        return snprintf(text, bytes, "asks for %u bytes of shared memory; a block can have %u", launch->shared,
                        227 * 1024), 1;
    }

    install_signal_handler();
    std::unique_ptr<Machine> m = take_machine();
    if (!grow(m.get(), launch->threads)) {
        return snprintf(text, bytes, "the emulator has no memory for %u stacks", launch->threads), 1;
    }
    m->kernel = kernel;
    m->arguments = launch->arguments;
    m->threads = launch->threads;
    m->random = launch->seed * 0x9e3779b97f4a7c15u | 1;
    for (int i = 0; i < 8; i++) m->below(2);
    m->fault_address = 0;
    m->pc = nullptr;
    m->file = nullptr;
    m->running = nullptr;
    m->regions = launch->regions;
    m->region_count = launch->region_count;
    m->last_region = nullptr;
    m->watch = launch->watch != 0;
    set_shared(m.get(), launch->shared);

    stack_t stack, before;
    memset(&stack, 0, sizeof stack);
    stack.ss_sp = m->signal_stack;
    stack.ss_size = SIGNAL_STACK;
    sigaltstack(&stack, &before);
    emulated_machine = m.get();
    run_grid(m.get(), launch->grid);
    emulated_machine = nullptr;
    sigaltstack(&before, nullptr);

    const bool failed = m->fault[0] != 0;
    if (failed) {
        char thread[32] = "";
        if (m->running != nullptr) snprintf(thread, sizeof thread, ", thread %u", m->running->index);
        snprintf(text, bytes, "block (%u, %u, %u)%s %s", blockIdx.x, blockIdx.y, blockIdx.z, thread, m->fault);
        fault->address = m->fault_address;
        Dl_info program;
        if (m->pc != nullptr && dladdr(reinterpret_cast<const void*>(emulator_launch), &program) != 0) {
            // What was kept is where the kernel goes on.
            fault->pc = reinterpret_cast<uint64_t>(m->pc) - 1 - reinterpret_cast<uint64_t>(program.dli_fbase);
        }
        fault->file = m->file;
        fault->line = m->line;
    }
    const std::lock_guard<std::mutex> lock(pool_lock);
    pool.push_back(std::move(m));
    return failed ? 1 : 0;
}
}
