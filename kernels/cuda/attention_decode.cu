// Attention of single new tokens over a key/value cache, forward only.
//
//   o = softmax(q kᵀ / √head_dim) v over the last `window` of the keys that a query has.
//
// Shapes: q, o [n, heads · head_dim], k, v [cache rows, kv_heads · head_dim] bf16, rows on 16 bytes and less than 2^24
// elements apart; contexts [n] pairs of int32: the first cache row of a query's keys and their number (one at least).
// Bytes moved: each visible key and value once per kv head, for all query heads that share it (up to 16 at a time, as
// the rows of one mma; the arithmetic hides behind the memory even for one). P is split in two bf16 whose sum has 16
// bits, so that nothing coarser than f32 sums and bf16 inputs is between q and o.
//
// Long contexts are cut into `splits` shares of whole runs of keys, one block each: attention_decode writes for every
// share its largest score m (times log2 e), Σ 2^(s - m) and Σ 2^(s - m) v, and attention_decode_combine adds them up in
// the order of the shares. With one share o is written at once.
//   partial: [n, heads, splits, head_dim + 2] f32: the sums of v, then m and the sum.
//
// A warp has its own keys (every fourth, or second, run of 16) and its own ring of copies under way: no barrier before
// the end, and three blocks of head size 128 per SM of an H100 keep 96 KiB in flight.
#include "attention.cuh"

// Keys of one share of a context of `keys`: a multiple of 64, the same in both kernels.
DEVICE int decode_share(int keys, int splits) { return ((keys + splits - 1) / splits + 63) / 64 * 64; }

template <int D, int WARPS, int STAGES>
DEVICE void attention_decode(const int* contexts, const bf16* q, int64_t q_ld, const bf16* k, int64_t k_ld,
                             const bf16* v, int64_t v_ld, bf16* o, int64_t o_ld, float* partial, int heads, int group,
                             int head_dim, int window, float scale) {
    constexpr int KEYS = 16, ROWS = 16;
    const int row = blockIdx.z, split = blockIdx.y, splits = gridDim.y;
    const int keys = contexts[2 * row + 1], low = max(0, keys - window), share = decode_share(keys - low, splits);
    const int begin = low + split * share, end = min(keys, begin + share);
    if (begin >= end) return;
    const int rounds = (group + ROWS - 1) / ROWS, kv_head = blockIdx.x / rounds;
    const int first_head = kv_head * group + blockIdx.x % rounds * ROWS;
    const int mine = min(ROWS, (kv_head + 1) * group - first_head), chunks = head_dim / 8;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, quad = lane / 4, pair = 2 * (lane % 4);

    bf16* ring = shared_memory<bf16>() + warp * (STAGES * 2 * KEYS * D);
    k += contexts[2 * row] * k_ld + kv_head * head_dim;
    v += contexts[2 * row] * v_ld + kv_head * head_dim;
    // A group of copies per run even where there is none left, so that the number of groups tells which has arrived.
    const auto fetch = [&](int key, int stage) {
        if (key < end) {
            bf16* to = ring + stage * (2 * KEYS * D);
            Tile<D>::template fetch<KEYS, WARP>(to, k + key * k_ld, k_ld, end - key, chunks);
            Tile<D>::template fetch<KEYS, WARP>(to + KEYS * D, v + key * v_ld, v_ld, end - key, chunks);
        }
        cp_async_commit();
    };
    int key = begin + warp * KEYS;
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) fetch(key + i * (WARPS * KEYS), i);

    // The query heads as rows of A, zeros where there are fewer.
    uint32_t query[D / 16][4];
#pragma unroll
    for (int d = 0; d < D / 16; d++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int head = quad + e % 2 * 8, column = d * 16 + e / 2 * 8 + pair;
            query[d][e] = 0;
            if (head < mine && column < head_dim) {
                const bf16* from = q + row * q_ld + (first_head + head) * head_dim + column;
                CHECK_ALIGNED(from, 4);
                query[d][e] = *reinterpret_cast<const uint32_t*>(from);
            }
        }
    }
    float largest[2] = {-INFINITE, -INFINITE}, sum[2] = {0.0f, 0.0f}, acc[D / 8][4];
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) acc[n][e] = 0.0f;
    }
    const float scale_log2 = scale * LOG2_E;

    int stage = 0;
    for (; key < end; key += WARPS * KEYS) {
        cp_async_wait<STAGES - 2>();
        __syncwarp();
        fetch(key + (STAGES - 1) * (WARPS * KEYS), stage == 0 ? STAGES - 1 : stage - 1);
        const bf16* tile = ring + stage * (2 * KEYS * D);
        stage = stage + 1 == STAGES ? 0 : stage + 1;

        const Operand<D> of_k = Operand<D>::columns(tile), of_v = Operand<D>::rows(tile + KEYS * D);
        float s[2][4] = {{0.0f, 0.0f, 0.0f, 0.0f}, {0.0f, 0.0f, 0.0f, 0.0f}};
#pragma unroll
        for (int d = 0; d < D / 16; d++) {
            uint32_t b[4];
            of_k.load(b, 0, d);
            mma_pair(s[0], s[1], query[d], b);
        }
#pragma unroll
        for (int e = 0; e < 8; e++) {
            if (key + e / 4 * 8 + pair + e % 2 >= end) s[e / 4][e % 4] = -INFINITE;
        }
        float fade[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float top = row_max(fmaxf(fmaxf(s[0][2 * r], s[0][2 * r + 1]), fmaxf(s[1][2 * r], s[1][2 * r + 1])));
            const float old = largest[r];
            largest[r] = fmaxf(old, top * scale_log2);
            fade[r] = old == largest[r] ? 1.0f : exp2_fast(old - largest[r]);
            sum[r] *= fade[r];
            const float shift = largest[r] == -INFINITE ? 0.0f : largest[r];
#pragma unroll
            for (int e = 0; e < 4; e++) {
                float& p = s[e / 2][2 * r + e % 2];
                p = exp2_fast(fmaf(p, scale_log2, -shift));
                sum[r] += p;
            }
        }
        // P as the sum of two bf16.
        uint32_t upper[4], lower[4];
        to_operand(upper, s[0], s[1]);
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const float(&p)[4] = s[e / 2];
            lower[e] = pack_bf16(p[e % 2 * 2] - low_float(upper[e]), p[e % 2 * 2 + 1] - high_float(upper[e]));
        }
#pragma unroll
        for (int d = 0; d < D / 16; d++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                acc[2 * d][e] *= fade[e / 2];
                acc[2 * d + 1][e] *= fade[e / 2];
            }
            uint32_t b[4];
            of_v.load_trans(b, 0, d);
            mma_pair(acc[2 * d], acc[2 * d + 1], upper, b);
            mma_pair(acc[2 * d], acc[2 * d + 1], lower, b);
        }
    }

    // The warps' sums meet in shared memory, where the rings were. Rows are 8 apart from whole banks.
    constexpr int LD = D + 8;
    cp_async_wait<0>();
    __syncthreads();
    float* sums = shared_memory<float>();
    float* stats = sums + WARPS * ROWS * LD;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int at = warp * ROWS + quad + r * 8;
        const float total = row_sum(sum[r]);
        if (pair == 0) {
            stats[2 * at] = largest[r];
            stats[2 * at + 1] = total;
        }
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            *reinterpret_cast<float2*>(sums + at * LD + n * 8 + pair) = make_float2(acc[n][2 * r], acc[n][2 * r + 1]);
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < mine * chunks; i += WARPS * WARP) {
        const int head = i / chunks, column = i % chunks * 8;
        float top = -INFINITE;
#pragma unroll
        for (int w = 0; w < WARPS; w++) top = fmaxf(top, stats[2 * (w * ROWS + head)]);
        float total = 0.0f, out[8] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            const int at = w * ROWS + head;
            // A warp without keys has 2^-inf; one that has seen no number stands with the rest.
            const float weight = stats[2 * at] == top ? 1.0f : exp2_fast(stats[2 * at] - top);
            total = fmaf(weight, stats[2 * at + 1], total);
#pragma unroll
            for (int e = 0; e < 8; e++) out[e] = fmaf(weight, sums[at * LD + column + e], out[e]);
        }
        if (splits == 1) {
#pragma unroll
            for (int e = 0; e < 8; e++) out[e] /= total;
            store8(o + row * o_ld + (first_head + head) * head_dim + column, out);
        } else {
            const int64_t at = (static_cast<int64_t>(row) * heads + first_head + head) * splits + split;
            float* to = partial + at * (head_dim + 2);
#pragma unroll
            for (int e = 0; e < 8; e += 2) {
                *reinterpret_cast<float2*>(to + column + e) = make_float2(out[e], out[e + 1]);
            }
            if (column == 0) *reinterpret_cast<float2*>(to + head_dim) = make_float2(top, total);
        }
    }
}

#define ATTENTION_DECODE(D, WARPS, STAGES)                                                                            \
    KERNEL(attention_decode_##D, WARPS* WARP)(const int* contexts, const bf16* q, int64_t q_ld, const bf16* k,        \
                                              int64_t k_ld, const bf16* v, int64_t v_ld, bf16* o, int64_t o_ld,       \
                                              float* partial, int heads, int group, int head_dim, int window,         \
                                              float scale) {                                                          \
        attention_decode<D, WARPS, STAGES>(contexts, q, q_ld, k, k_ld, v, v_ld, o, o_ld, partial, heads, group,       \
                                           head_dim, window, scale);                                                  \
    }

ATTENTION_DECODE(32, 4, 2)
ATTENTION_DECODE(64, 4, 3)
ATTENTION_DECODE(96, 4, 2)
ATTENTION_DECODE(128, 4, 2)
ATTENTION_DECODE(192, 2, 2)
ATTENTION_DECODE(256, 2, 2)

// o from the shares: a warp for each query and head.
KERNEL(attention_decode_combine, 128)
(const int* contexts, const float* partial, bf16* o, int64_t o_ld, int n, int heads, int head_dim, int splits,
 int window) {
    const int item = blockIdx.x * 4 + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int row = item / heads, head = item % heads;
    if (row >= n) return;
    const int keys = min(contexts[2 * row + 1], window), share = decode_share(keys, splits);
    const int live = (keys + share - 1) / share;
    partial += static_cast<int64_t>(item) * splits * (head_dim + 2);
    const auto stats = [&](int i) { return *reinterpret_cast<const float2*>(partial + i * (head_dim + 2) + head_dim); };

    float top = -INFINITE, total = 0.0f;
    for (int i = lane; i < live; i += WARP) top = fmaxf(top, stats(i).x);
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) top = fmaxf(top, __shfl_xor_sync(FULL_MASK, top, offset));
    for (int i = lane; i < live; i += WARP) {
        const float2 s = stats(i);
        total += s.x == top ? s.y : exp2_fast(s.x - top) * s.y;
    }
    const float inverse = 1.0f / warp_sum(total);
    for (int column = 2 * lane; column < head_dim; column += 2 * WARP) {
        float low = 0.0f, high = 0.0f;
#pragma unroll 4
        for (int i = 0; i < live; i++) {
            const float m = stats(i).x, weight = m == top ? 1.0f : exp2_fast(m - top);
            const float2 v = *reinterpret_cast<const float2*>(partial + i * (head_dim + 2) + column);
            low = fmaf(weight, v.x, low);
            high = fmaf(weight, v.y, high);
        }
        uint32_t* to = reinterpret_cast<uint32_t*>(o + row * o_ld + head * head_dim + column);
        *to = pack_bf16(low * inverse, high * inverse);
    }
}
