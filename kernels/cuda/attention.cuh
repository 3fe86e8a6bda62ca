// What the attention kernels share: tiles in shared memory, the operands that mma takes from them, the mask.
#pragma once

#include "mma.cuh"

constexpr float LOG2_E = 1.44269504088896340736f;

// 2^x. Results below 2^-126 are 0 on a GPU.
DEVICE float exp2_fast(float x) {
#ifdef TUNESMITH_EMULATOR
    return exp2f(x);
#else
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
#endif
}

// Whether the query at position p sees a key: causal, and at most `window` keys with itself.
DEVICE bool sees(int p, int key, int window) { return key <= p && key > p - window; }

// The first of the rows [low, high), of ascending positions, at position p or beyond; `high` if there is none.
DEVICE int first_from(const int* positions, int low, int high, int p) {
    if (low >= high || p > positions[high - 1]) return high;
    const int first = positions[low];
    if (p <= first) return low;
    // Positions without gaps, the usual case, need no search.
    if (positions[high - 1] - first == high - 1 - low) return low + (p - first);
    while (low < high) {
        const int middle = low + (high - low) / 2;
        if (positions[middle] < p) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

// Rows of D bf16 in shared memory. The 16-byte chunks of a row are swapped by the row's number, so that eight rows'
// chunks of the same column lie in different banks: ldmatrix and 16-byte accesses have no conflicts.
template <int D>
struct Tile {
    static constexpr int CHUNKS = D / 8;
    static_assert(CHUNKS % 4 == 0, "a head is padded to a multiple of 32");
    // Neighbouring lanes that move one row: whole 128- or 64-byte lines.
    static constexpr int LANES = CHUNKS % 8 == 0 ? 8 : 4;

    DEVICE static int mix(int row) { return CHUNKS % 8 == 0 ? row & 7 : (row >> 1) & 3; }
    DEVICE static int at(int row, int chunk) { return row * D + (chunk ^ mix(row)) * 8; }

    // Starts the copy of ROWS rows by THREADS threads: `rows` of them (one at least) and the first `chunks` of each
    // exist, the rest becomes zeros. Offsets inside a tile take 32 bits: the launchers keep ld below 2^24.
    template <int ROWS, int THREADS>
    DEVICE static void fetch(bf16* tile, const bf16* from, int64_t ld, int rows, int chunks) {
        constexpr int STEP = THREADS / LANES;
        static_assert(ROWS % STEP == 0, "every thread copies the same number of rows");
        const int thread = threadIdx.x % THREADS, lane = thread % LANES;
#pragma unroll
        for (int i = 0; i < ROWS / STEP; i++) {
            const int row = thread / LANES + i * STEP;
            const int offset = min(row, rows - 1) * static_cast<int>(ld);
#pragma unroll
            for (int j = 0; j < CHUNKS / LANES; j++) {
                const int chunk = lane + j * LANES;
                const bf16* source = from + (offset + min(chunk, chunks - 1) * 8);
                cp_async_16(tile + at(row, chunk), source, row < rows && chunk < chunks);
            }
        }
    }

    // A warp writes the first `rows` of ROWS rows and the first `chunks` of each to global memory.
    template <int ROWS>
    DEVICE static void store(const bf16* tile, bf16* to, int64_t ld, int rows, int chunks) {
        constexpr int STEP = WARP / LANES;
        const int thread = threadIdx.x % WARP, lane = thread % LANES;
#pragma unroll
        for (int i = 0; i < ROWS / STEP; i++) {
            const int row = thread / LANES + i * STEP;
#pragma unroll
            for (int j = 0; j < CHUNKS / LANES; j++) {
                const int chunk = lane + j * LANES;
                if (row < rows && chunk < chunks) {
                    bf16* out = to + (row * static_cast<int>(ld) + chunk * 8);
                    CHECK_ALIGNED(out, 16);
                    *reinterpret_cast<uint4*>(out) = *reinterpret_cast<const uint4*>(tile + at(row, chunk));
                }
            }
        }
    }

    // Rounds a warp's 16 x D sums, times a factor for the upper and lower 8 rows, into 16 rows of a tile.
    DEVICE static void put(bf16* tile, const float (&sums)[D / 8][4], float upper, float lower) {
        const int lane = threadIdx.x % WARP, row = lane / 4, column = 2 * (lane % 4);
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            const float(&c)[4] = sums[n];
            *reinterpret_cast<uint32_t*>(tile + at(row, n) + column) = pack_bf16(c[0] * upper, c[1] * upper);
            *reinterpret_cast<uint32_t*>(tile + at(row + 8, n) + column) = pack_bf16(c[2] * lower, c[3] * lower);
        }
    }
};

// What a lane reads of a tile as an operand of mma: 16 x 16 blocks, block (i, j) at rows 16 i, columns 16 j.
template <int D>
struct Operand {
    // Blocks whose chunks are swapped among each other; from one such group to the next it is a plain step.
    static constexpr int GROUP = Tile<D>::CHUNKS % 8 == 0 ? 4 : 2;
    const bf16* tile;
    int lane;

    DEVICE Operand(const bf16* tile, int row, int chunk) : tile(tile), lane(Tile<D>::at(row, chunk)) {}

    // The tile's rows as rows of A.
    DEVICE static Operand rows(const bf16* tile) {
        const int lane = threadIdx.x % WARP;
        return Operand(tile, lane % 16, lane / 16);
    }
    // The tile's rows as columns of two B: r[0], r[1] the first eight, r[2], r[3] the next.
    DEVICE static Operand columns(const bf16* tile) {
        const int lane = threadIdx.x % WARP;
        return Operand(tile, lane / 16 * 8 + lane % 8, lane / 8 % 2);
    }

    DEVICE const bf16* at(int i, int j) const {
        return tile + (lane ^ (j % GROUP * 16)) + (j / GROUP * GROUP * 16 + i * 16 * D);
    }
    DEVICE void load(uint32_t (&r)[4], int i, int j) const { ldmatrix_x4(r, at(i, j)); }
    // The transpose; of `rows`, the tile's rows become the depth of two B, split as in `columns` by the tile's columns.
    DEVICE void load_trans(uint32_t (&r)[4], int i, int j) const { ldmatrix_x4_trans(r, at(i, j)); }
};

// c0, c1 += A times the two B of `b`.
DEVICE void mma_pair(float (&c0)[4], float (&c1)[4], const uint32_t (&a)[4], const uint32_t (&b)[4]) {
    const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
    mma_16816(c0, a, first);
    mma_16816(c1, a, second);
}

// Sums of 16 x 16, as two of mma's C, rounded to an A.
DEVICE void to_operand(uint32_t (&a)[4], const float (&left)[4], const float (&right)[4]) {
    a[0] = pack_bf16(left[0], left[1]);
    a[1] = pack_bf16(left[2], left[3]);
    a[2] = pack_bf16(right[0], right[1]);
    a[3] = pack_bf16(right[2], right[3]);
}

// The four lanes that share a row of C.
DEVICE float row_max(float v) {
    v = fmaxf(v, __shfl_xor_sync(FULL_MASK, v, 1));
    return fmaxf(v, __shfl_xor_sync(FULL_MASK, v, 2));
}
DEVICE float row_sum(float v) {
    v += __shfl_xor_sync(FULL_MASK, v, 1);
    return v + __shfl_xor_sync(FULL_MASK, v, 2);
}
