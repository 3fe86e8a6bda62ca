// What the 32 lanes of a warp do together: the last to arrive computes the result of every lane.

#include <stdio.h>

#include "machine.h"

const char* name_of(EmulatedOp op) {
    static const char* const NAMES[] = {"nothing",         "__syncwarp",    "__shfl_sync", "__shfl_up_sync",
                                        "__shfl_down_sync", "__shfl_xor_sync", "__ballot_sync", "__any_sync",
                                        "__all_sync",       "mma",           "ldmatrix",    "ldmatrix.trans"};
    return NAMES[static_cast<unsigned>(op)];
}

static unsigned source_of(EmulatedOp op, unsigned lane, int operand, int width) {
    const int last = static_cast<int>(lane | (static_cast<unsigned>(width) - 1)), first = last - (width - 1);
    int source = static_cast<int>(lane);
    switch (op) {
        case EmulatedOp::Shfl: return static_cast<unsigned>(first + (operand & (width - 1)));
        case EmulatedOp::ShflUp: source -= operand; return source < first ? lane : static_cast<unsigned>(source);
        case EmulatedOp::ShflDown: source += operand; return source > last ? lane : static_cast<unsigned>(source);
        default: source ^= operand; return source > last ? lane : static_cast<unsigned>(source);
    }
}

// Eight floats, in whatever registers the machine has.
typedef float Row __attribute__((vector_size(32)));

#if defined(__x86_64__) && defined(__linux__) && defined(__GLIBC__)
#define FOR_EACH_MACHINE __attribute__((target_clones("avx2", "default")))
#else
#define FOR_EACH_MACHINE
#endif

// c += a b with f32 sums in the order of k. Four rows at a time, so that their sums do not wait for each other.
FOR_EACH_MACHINE static void multiply_add(Row* c, const float (*a)[16], const Row* b) {
    for (unsigned i = 0; i < 16; i += 4) {
        Row c0 = c[i], c1 = c[i + 1], c2 = c[i + 2], c3 = c[i + 3];
        for (unsigned k = 0; k < 16; k++) {
            const Row v = b[k];
            c0 += a[i][k] * v;
            c1 += a[i + 1][k] * v;
            c2 += a[i + 2][k] * v;
            c3 += a[i + 3][k] * v;
        }
        c[i] = c0, c[i + 1] = c1, c[i + 2] = c2, c[i + 3] = c3;
    }
}

// Fragments to matrices and back by PTX's layouts (mma.cuh has them). Products of bf16 are exact in f32.
static void multiply(Warp& warp) {
    float a[16][16];
    alignas(32) float b[16][8], c[16][8];
    for (unsigned lane = 0; lane < 32; lane++) {
        const unsigned group = lane / 4, pair = 2 * (lane % 4);
        const uint32_t* from_a = static_cast<const uint32_t*>(warp.lanes[lane].a);
        const uint32_t* from_b = static_cast<const uint32_t*>(warp.lanes[lane].b);
        const float* from_c = static_cast<const float*>(warp.lanes[lane].out);
        for (unsigned i = 0; i < 4; i++) {
            const unsigned row = group + i % 2 * 8, column = pair + i / 2 * 8;
            a[row][column] = __uint_as_float(from_a[i] << 16);
            a[row][column + 1] = __uint_as_float(from_a[i] & 0xffff0000u);
        }
        for (unsigned i = 0; i < 2; i++) {
            b[pair + i * 8][group] = __uint_as_float(from_b[i] << 16);
            b[pair + i * 8 + 1][group] = __uint_as_float(from_b[i] & 0xffff0000u);
        }
        for (unsigned i = 0; i < 2; i++) memcpy(&c[group + i * 8][pair], from_c + 2 * i, 8);
    }
    multiply_add(reinterpret_cast<Row*>(c), a, reinterpret_cast<const Row*>(b));
    for (unsigned lane = 0; lane < 32; lane++) {
        const unsigned group = lane / 4, pair = 2 * (lane % 4);
        float* out = static_cast<float*>(warp.lanes[lane].out);
        for (unsigned i = 0; i < 2; i++) memcpy(out + 2 * i, &c[group + i * 8][pair], 8);
    }
}

static void load_matrices(Warp& warp, bool transposed) {
    uint16_t rows[32][8];
    for (unsigned lane = 0; lane < 32; lane++) memcpy(rows[lane], warp.lanes[lane].a, 16);
    for (unsigned lane = 0; lane < 32; lane++) {
        const unsigned group = lane / 4, pair = 2 * (lane % 4);
        uint32_t* out = static_cast<uint32_t*>(warp.lanes[lane].out);
        for (unsigned t = 0; t < 4; t++) {
            const uint32_t low = transposed ? rows[8 * t + pair][group] : rows[8 * t + group][pair];
            const uint32_t high = transposed ? rows[8 * t + pair + 1][group] : rows[8 * t + group][pair + 1];
            out[t] = low | high << 16;
        }
    }
}

static void complete(Warp& warp) {
    uint32_t votes = 0;
    switch (warp.op) {
        case EmulatedOp::Shfl:
        case EmulatedOp::ShflUp:
        case EmulatedOp::ShflDown:
        case EmulatedOp::ShflXor:
            for (unsigned lane = 0; lane < 32; lane++) {
                Lane& l = warp.lanes[lane];
                l.result = warp.lanes[source_of(warp.op, lane, l.operand, l.width) & 31].value;
            }
            break;
        case EmulatedOp::Ballot:
        case EmulatedOp::Any:
        case EmulatedOp::All:
            for (unsigned lane = 0; lane < 32; lane++) votes |= static_cast<uint32_t>(warp.lanes[lane].value) << lane;
            if (warp.op == EmulatedOp::Any) votes = votes != 0;
            if (warp.op == EmulatedOp::All) votes = votes == 0xffffffffu;
            for (unsigned lane = 0; lane < 32; lane++) warp.lanes[lane].result = votes;
            break;
        case EmulatedOp::Mma: multiply(warp); break;
        case EmulatedOp::Ldmatrix: load_matrices(warp, false); break;
        case EmulatedOp::LdmatrixTrans: load_matrices(warp, true); break;
        default: break;
    }
}

// Waits for the other lanes of the warp.
static void meet(Machine* m, EmulatedOp op, const char* file, int line) {
    const unsigned index = m->running->index;
    Warp& warp = m->warps[index / 32];
    char text[512];
    if (warp.ended > 0 || index / 32 * 32 + 32 > m->threads) {
        snprintf(text, sizeof text, "called %s in a warp that has not all of its 32 lanes", name_of(op));
        emulated_fault(text, file, line);
    }
    if (warp.arrived > 0 && (warp.op != op || warp.line != line || (warp.file != file && strcmp(warp.file, file) != 0))) {
        snprintf(text, sizeof text, "called %s while other lanes of its warp wait in %s (%s:%d)", name_of(op),
                 name_of(warp.op), short_name(warp.file), warp.line);
        emulated_fault(text, file, line);
    }
    warp.op = op;
    warp.file = file;
    warp.line = line;
    if (++warp.arrived < 32) {
        m->running->state = State::Warp;
    } else {
        complete(warp);
        if (op == EmulatedOp::Syncwarp) warp.clock = ++m->clock;
        warp.arrived = 0;
        for (unsigned lane = 0; lane < 32; lane++) m->wake(index / 32 * 32 + lane);
    }
    m->yield();
}

uint64_t emulated_warp(EmulatedOp op, unsigned mask, uint64_t value, int operand, int width, const char* file, int line) {
    Machine* m = emulated_machine;
    m->pc = __builtin_return_address(0);
    if (mask != 0xffffffffu) emulated_fault("called a warp collective with a mask that is not full", file, line);
    if (width < 1 || width > 32 || (width & (width - 1)) != 0) {
        emulated_fault("called a shuffle with a width that is no power of two up to 32", file, line);
    }
    Lane& lane = m->warps[m->running->index / 32].lanes[m->running->index % 32];
    lane.value = value;
    lane.operand = operand;
    lane.width = width;
    meet(m, op, file, line);
    return lane.result;
}

void emulated_mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const char* file, int line) {
    Machine* m = emulated_machine;
    m->pc = __builtin_return_address(0);
    Lane& lane = m->warps[m->running->index / 32].lanes[m->running->index % 32];
    lane.out = c;
    lane.a = a;
    lane.b = b;
    meet(m, EmulatedOp::Mma, file, line);
}

// Whether 16 bytes from `p` on are inside the block's shared memory.
static bool in_shared(const Machine* m, const void* p) {
    const uintptr_t from = reinterpret_cast<uintptr_t>(m->shared), at = reinterpret_cast<uintptr_t>(p);
    return at >= from && at - from + 16 <= m->shared_bytes;
}

void emulated_ldmatrix(uint32_t (&r)[4], const void* row, bool transposed, const char* file, int line) {
    Machine* m = emulated_machine;
    m->pc = __builtin_return_address(0);
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) emulated_unaligned(row, 16, file, line);
    if (!in_shared(m, row)) emulated_fault("gave ldmatrix a row outside its shared memory", file, line);
    watch_access(row, 16, false);
    Lane& lane = m->warps[m->running->index / 32].lanes[m->running->index % 32];
    lane.out = r;
    lane.a = row;
    meet(m, transposed ? EmulatedOp::LdmatrixTrans : EmulatedOp::Ldmatrix, file, line);
}

// A copy may land at any time up to its wait. It lands there, and the target holds poison from its start on: so both a
// missing wait and a reader that is not done with the target show.
void emulated_cp_async(void* to, const void* from, bool valid, const char* file, int line) {
    Machine* m = emulated_machine;
    m->pc = __builtin_return_address(0);
    if (reinterpret_cast<uintptr_t>(to) % 16 != 0) emulated_unaligned(to, 16, file, line);
    if (reinterpret_cast<uintptr_t>(from) % 16 != 0) emulated_unaligned(from, 16, file, line);
    if (!in_shared(m, to)) emulated_fault("copies to a place outside its shared memory", file, line);
    // The read may be put off too, but here it can name its place. A copy of zeros reads nothing.
    if (valid) watch_access(from, 16, false);
    watch_access(to, 16, true);
    memset(to, 0xff, 16);
    m->running->copies.push_back({to, from, valid, m->running->group, m->pc});
}

void emulated_cp_async_commit() { emulated_machine->running->group++; }

void emulated_cp_async_wait(int groups) {
    Machine* m = emulated_machine;
    m->pc = __builtin_return_address(0);
    Fiber* fiber = m->running;
    size_t kept = 0;
    for (const Copy& copy : fiber->copies) {
        // Copies of a group that is not closed yet are not waited for.
        if (copy.group + static_cast<unsigned>(groups) >= fiber->group) {
            fiber->copies[kept++] = copy;
            continue;
        }
        watch_access(copy.to, 16, true);
        if (copy.valid) {
            memcpy(copy.to, copy.from, 16);
        } else {
            memset(copy.to, 0, 16);
        }
    }
    fiber->copies.resize(kept);
}
