// Watches every memory access of a kernel: the compiler calls the functions below (-fsanitize=thread and some of
// -fsanitize=undefined, without their runtimes) and they end the launch with a fault on
//
// - an access outside shared memory or outside a buffer, to the byte (guard pages stop what is never compiled in here);
// - an access that is not aligned for its type, an index outside a local array, an overflow of signed integers, a shift
//   by too much, a division by zero;
// - a race: two threads use the same two bytes, one of them writes, and nothing orders them. Within a block a barrier
//   orders, within a warp __syncwarp too; between blocks of a launch nothing does. Single bytes are left out, since a
//   cell holds two of them.
//
// A cell keeps the last writer and the last reader as launch and clock (52 bits), flags (2) and thread (10). The clock
// goes on with every barrier and block, so that a cell's age says what has been ordered since.

#include <stdio.h>

#include <algorithm>

#include "machine.h"

constexpr uint64_t SEVERAL_LANES = 1 << 10;    // of the thread's warp
constexpr uint64_t SEVERAL_THREADS = 1 << 11;  // of several warps
constexpr uint64_t FLAGS = SEVERAL_LANES | SEVERAL_THREADS;

static uint64_t clock_of(uint64_t record) { return record >> 12; }
static unsigned thread_of(uint64_t record) { return record & 1023; }

// Whether what was recorded is over, for thread `t`, when it did not happen before `first`.
static inline bool ordered(const Machine* m, uint64_t record, uint64_t first, unsigned t) {
    const uint64_t clock = clock_of(record);
    if (clock < first) return true;
    if (clock < m->block_clock) return false;
    if (clock < m->barrier_clock) return true;
    if ((record & FLAGS) == 0 && thread_of(record) == t) return true;
    return thread_of(record) / 32 == t / 32 && (record & SEVERAL_THREADS) == 0 && clock < m->warps[t / 32].clock;
}

[[noreturn]] static __attribute__((noinline)) void race(Machine* m, const Region* region, uint64_t address, bool write,
                                                        uint64_t other, bool other_wrote) {
    char text[512], place[128];
    if (region == nullptr) {
        snprintf(place, sizeof place, "byte %llu of shared memory",
                 static_cast<unsigned long long>(address - reinterpret_cast<uint64_t>(m->shared)));
    } else {
        snprintf(place, sizeof place, "byte %llu of a buffer of %llu bytes",
                 static_cast<unsigned long long>(address - region->from),
                 static_cast<unsigned long long>(region->to - region->from));
    }
    const bool elsewhere = clock_of(other) < m->block_clock;
    snprintf(text, sizeof text, "%s %s, which thread %u%s has %s with nothing in between to order the two",
             write ? "wrote to" : "read", place, thread_of(other), elsewhere ? " of another block" : "",
             other_wrote ? "written" : "read");
    emulated_fault(text);
}

static inline void touch(Machine* m, const Region* region, Cell* cell, uint64_t address, size_t bytes, bool write,
                         uint64_t first) {
    const unsigned t = m->running->index;
    const uint64_t now = m->clock << 12 | t;
    for (size_t i = 0; i < (bytes + 1) / 2; i++, cell++) {
        if (!ordered(m, cell->writer, first, t)) race(m, region, address + 2 * i, write, cell->writer, true);
        const bool alone = ordered(m, cell->reader, first, t);
        if (write) {
            if (!alone) race(m, region, address + 2 * i, write, cell->reader, false);
            cell->writer = now;
        } else if (alone || clock_of(cell->reader) < m->block_clock) {
            cell->reader = now;
        } else if (thread_of(cell->reader) / 32 == t / 32 && (cell->reader & SEVERAL_THREADS) == 0) {
            cell->reader = now | SEVERAL_LANES;
        } else {
            cell->reader = now | SEVERAL_THREADS;
        }
    }
}

static const Region* find_region(Machine* m, uint64_t address) {
    const Region* end = m->regions + m->region_count;
    // The first region whose guard ends behind the address.
    const Region* at = std::partition_point(m->regions, end, [&](const Region& r) { return r.to + GUARD <= address; });
    if (at == end || address < at->from - GUARD) return nullptr;
    return at;
}

static inline void access(uint64_t address, size_t bytes, bool write, const void* pc) {
    Machine* m = emulated_machine;
    // The tables of kernels are filled in when the program starts.
    if (m == nullptr || !m->watch) return;
    if (address - reinterpret_cast<uint64_t>(m->running->stack) < STACK) return;
    const uint64_t offset = address - reinterpret_cast<uint64_t>(m->shared);
    if (offset < m->shared_bytes && offset + bytes <= m->shared_bytes) {
        m->pc = pc;
        if (bytes > 1) touch(m, nullptr, m->cells + offset / 2, address, bytes, write, m->block_clock);
        return;
    }
    const Region* region = m->last_region;
    if (region == nullptr || address < region->from || address >= region->to) {
        const uint64_t area = reinterpret_cast<uint64_t>(m->shared_area);
        if (address - (area - GUARD) < MAX_SHARED + 2 * GUARD) {
            m->pc = pc;
            outside_shared(m, address, write);
        }
        region = find_region(m, address);
        // The C++ side's own: thread and block indices, tables of constants.
        if (region == nullptr) return;
        m->last_region = region;
    }
    m->pc = pc;
    if (address < region->from || address + bytes > region->to) {
        m->fault_address = std::max(address, address < region->from ? address : region->to);
        emulated_fault(write ? "wrote to memory that is not its own" : "read memory that is not its own");
    }
    if (bytes > 1) touch(m, region, region->cells + (address - region->from) / 2, address, bytes, write, m->launch_clock);
}

void watch_access(const void* p, size_t bytes, bool write) {
    access(reinterpret_cast<uint64_t>(p), bytes, write, emulated_machine->pc);
}

// ---- -fsanitize=thread -------------------------------------------------------------------------------------------------

extern "C" {

#define WATCH(bytes)                                                                                                    \
    void __tsan_read##bytes(void* p) {                                                                                  \
        access(reinterpret_cast<uint64_t>(p), bytes, false, __builtin_return_address(0));                               \
    }                                                                                                                   \
    void __tsan_write##bytes(void* p) {                                                                                 \
        access(reinterpret_cast<uint64_t>(p), bytes, true, __builtin_return_address(0));                                \
    }                                                                                                                   \
    void __tsan_unaligned_read##bytes(void* p) {                                                                        \
        access(reinterpret_cast<uint64_t>(p), bytes, false, __builtin_return_address(0));                               \
    }                                                                                                                   \
    void __tsan_unaligned_write##bytes(void* p) {                                                                       \
        access(reinterpret_cast<uint64_t>(p), bytes, true, __builtin_return_address(0));                                \
    }                                                                                                                   \
    void __tsan_volatile_read##bytes(void* p) {                                                                         \
        access(reinterpret_cast<uint64_t>(p), bytes, false, __builtin_return_address(0));                               \
    }                                                                                                                   \
    void __tsan_volatile_write##bytes(void* p) {                                                                        \
        access(reinterpret_cast<uint64_t>(p), bytes, true, __builtin_return_address(0));                                \
    }
WATCH(1)
WATCH(2)
WATCH(4)
WATCH(8)
WATCH(16)

void __tsan_read_range(void* p, size_t bytes) {
    access(reinterpret_cast<uint64_t>(p), bytes, false, __builtin_return_address(0));
}
void __tsan_write_range(void* p, size_t bytes) {
    access(reinterpret_cast<uint64_t>(p), bytes, true, __builtin_return_address(0));
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

// ---- -fsanitize=undefined ----------------------------------------------------------------------------------------------

// The head of what the compiler passes: the place in the source, then the type.
struct Place {
    const char* file;
    uint32_t line, column;
};
struct Type {
    uint16_t kind, info;
    char name[1];
};
struct Mismatch {
    Place place;
    const Type* type;
    unsigned char log_alignment, kind;
};

static void stop(const Place& place, const void* pc, const char* what) {
    emulated_machine->pc = pc;
    emulated_fault(what, place.file, static_cast<int>(place.line));
}

void __ubsan_handle_type_mismatch_v1(Mismatch* data, uintptr_t pointer) {
    emulated_machine->pc = __builtin_return_address(0);
    emulated_unaligned(reinterpret_cast<const void*>(pointer), 1u << data->log_alignment, data->place.file,
                       static_cast<int>(data->place.line));
}
void __ubsan_handle_out_of_bounds(Place* place, uintptr_t index) {
    char text[128];
    snprintf(text, sizeof text, "used index %lld of a local array that is shorter", static_cast<long long>(index));
    stop(*place, __builtin_return_address(0), text);
}

#define OVERFLOWS(name, what) \
    void __ubsan_handle_##name(Place* place, uintptr_t, uintptr_t) { stop(*place, __builtin_return_address(0), what); }
OVERFLOWS(add_overflow, "overflowed a signed integer in a sum")
OVERFLOWS(sub_overflow, "overflowed a signed integer in a difference")
OVERFLOWS(mul_overflow, "overflowed a signed integer in a product")
OVERFLOWS(negate_overflow, "overflowed a signed integer in a negation")
OVERFLOWS(divrem_overflow, "divided an integer by zero")
OVERFLOWS(shift_out_of_bounds, "shifted an integer by a number of bits that it does not have")
}
