// Attention backward in two kernels without atomics: dq by tiles of queries, dk and dv by tiles of keys; formulas in
// attention.cu.
//
// dq is the forward's scheme with K and V in two stages each. In the other kernel a warp owns 16 keys and works on the
// transposes Sᵀ = K Qᵀ and dPᵀ = V dOᵀ: rounded, Pᵀ and dSᵀ are in registers what the products dv += Pᵀ dO and
// dk += dSᵀ Q take as A, so that nothing but Q and dO passes through shared memory, with one barrier a tile.
// No instance takes more than 99 KiB, what a block of any GPU from sm_80 on may have. At head size 128 an H100's SM holds
// two blocks of dq (four warps each) and one of dk and dv (eight warps, which share each tile of Q and dO).
#pragma once

#include "attention.cuh"

struct AttentionBackward {
    const int* tiles;
    const int* positions;
    const bf16* q;
    int64_t q_ld;
    const bf16* k;
    int64_t k_ld;
    const bf16* v;
    int64_t v_ld;
    const bf16* d_o;
    int64_t d_o_ld;
    // (lse · log2 e, D) of each query, [heads, queries].
    const float2* stats;
    int queries, group, head_dim, window;
    float scale;
};

template <int N>
DEVICE void zero(float (&sums)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) sums[n][e] = 0.0f;
    }
}

// dq of BM queries of one head; blockIdx.z counts the parts of the plan's tile where BM is smaller.
template <int D, int BN, int MT, int WARPS>
DEVICE void attention_dq(const AttentionBackward& x, bf16* dq, int64_t dq_ld) {
    constexpr int BM = WARPS * MT * 16, THREADS = WARPS * WARP;

    const int q0 = x.tiles[3 * blockIdx.y] + BM * blockIdx.z, q1 = min(x.tiles[3 * blockIdx.y + 1], q0 + BM);
    const int k0 = x.tiles[3 * blockIdx.y + 2];
    if (q0 >= q1) return;
    const int rows = q1 - q0, chunks = x.head_dim / 8, head = blockIdx.x, warp = threadIdx.x / WARP;
    const int group = threadIdx.x % WARP / 4, pair = 2 * (threadIdx.x % 4);
    const int low = max(0, x.positions[q0] - x.window + 1), high = x.positions[q1 - 1] + 1;

    bf16* tile_q = shared_memory<bf16>();
    bf16* tile_do = tile_q + BM * D;
    bf16* stages = tile_do + BM * D;
    const int kv_column = head / x.group * x.head_dim;
    const auto fetch = [&](int key, int stage) {
        const bf16* k = x.k + static_cast<int64_t>(k0 + key) * x.k_ld + kv_column;
        const bf16* v = x.v + static_cast<int64_t>(k0 + key) * x.v_ld + kv_column;
        bf16* to = stages + stage * (2 * BN * D);
        Tile<D>::template fetch<BN, THREADS>(to, k, x.k_ld, high - key, chunks);
        Tile<D>::template fetch<BN, THREADS>(to + BN * D, v, x.v_ld, high - key, chunks);
        cp_async_commit();
    };
    Tile<D>::template fetch<BM, THREADS>(tile_q, x.q + q0 * x.q_ld + head * x.head_dim, x.q_ld, rows, chunks);
    Tile<D>::template fetch<BM, THREADS>(tile_do, x.d_o + q0 * x.d_o_ld + head * x.head_dim, x.d_o_ld, rows, chunks);
    fetch(low, 0);

    const int warp_row = warp * MT * 16;
    const bool live = warp_row < rows;
    const int warp_first = x.positions[q0 + min(warp_row, rows - 1)];
    const int warp_last = x.positions[q0 + min(warp_row + MT * 16, rows) - 1];
    // In shared memory, since registers are short.
    float2* stats = reinterpret_cast<float2*>(stages + 4 * BN * D);
    static_assert(BM <= THREADS, "a thread for each query");
    if (threadIdx.x < BM) {
        const int row = q0 + min(static_cast<int>(threadIdx.x), rows - 1);
        stats[threadIdx.x] = x.stats[static_cast<int64_t>(head) * x.queries + row];
    }
    float acc[MT][D / 8][4];
#pragma unroll
    for (int m = 0; m < MT; m++) zero(acc[m]);
    const Operand<D> of_q = Operand<D>::rows(tile_q + warp_row * D);
    const Operand<D> of_do = Operand<D>::rows(tile_do + warp_row * D);
    const float scale_log2 = x.scale * LOG2_E;

    int stage = 0;
    for (int key = low; key < high; key += BN, stage ^= 1) {
        cp_async_wait<0>();
        __syncthreads();
        if (key + BN < high) fetch(key + BN, stage ^ 1);
        if (!live || key > warp_last || key + BN - 1 <= warp_first - x.window) continue;

        const bf16* tile_k = stages + stage * (2 * BN * D);
        const Operand<D> of_k = Operand<D>::columns(tile_k), of_v = Operand<D>::columns(tile_k + BN * D);
        const auto product = [&](float(&out)[MT][BN / 8][4], const Operand<D>& left, const Operand<D>& right) {
#pragma unroll
            for (int m = 0; m < MT; m++) zero(out[m]);
#pragma unroll
            for (int d = 0; d < D / 16; d++) {
                uint32_t a[MT][4];
#pragma unroll
                for (int m = 0; m < MT; m++) left.load(a[m], m, d);
#pragma unroll
                for (int n = 0; n < BN / 16; n++) {
                    uint32_t b[4];
                    right.load(b, n, d);
#pragma unroll
                    for (int m = 0; m < MT; m++) mma_pair(out[m][2 * n], out[m][2 * n + 1], a[m], b);
                }
            }
        };
        float s[MT][BN / 8][4], dp[MT][BN / 8][4];
        product(s, of_q, of_k);
        product(dp, of_do, of_v);

        // S becomes P.
        const float2* warp_stats = stats + warp_row + group;
#pragma unroll
        for (int m = 0; m < MT; m++) {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const float shift = warp_stats[m * 16 + r * 8].x;
#pragma unroll
                for (int n = 0; n < BN / 8; n++) {
#pragma unroll
                    for (int e = 2 * r; e < 2 * r + 2; e++) {
                        s[m][n][e] = exp2_fast(fmaf(s[m][n][e], scale_log2, -shift));
                    }
                }
            }
        }
        if (key + BN - 1 > warp_first || key <= warp_last - x.window) {
#pragma unroll
            for (int m = 0; m < MT; m++) {
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    const int p = x.positions[q0 + min(warp_row + m * 16 + r * 8 + group, rows - 1)];
#pragma unroll
                    for (int n = 0; n < BN / 8; n++) {
#pragma unroll
                        for (int e = 0; e < 2; e++) {
                            if (!sees(p, key + n * 8 + pair + e, x.window)) s[m][n][2 * r + e] = 0.0f;
                        }
                    }
                }
            }
        }
        // dS = P ∘ (dP - D).
#pragma unroll
        for (int m = 0; m < MT; m++) {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const float delta = warp_stats[m * 16 + r * 8].y;
#pragma unroll
                for (int n = 0; n < BN / 8; n++) {
#pragma unroll
                    for (int e = 2 * r; e < 2 * r + 2; e++) s[m][n][e] *= dp[m][n][e] - delta;
                }
            }
        }
        const Operand<D> deep = Operand<D>::rows(tile_k);
#pragma unroll
        for (int n = 0; n < BN / 16; n++) {
            uint32_t a[MT][4];
#pragma unroll
            for (int m = 0; m < MT; m++) to_operand(a[m], s[m][2 * n], s[m][2 * n + 1]);
#pragma unroll
            for (int d = 0; d < D / 16; d++) {
                uint32_t b[4];
                deep.load_trans(b, n, d);
#pragma unroll
                for (int m = 0; m < MT; m++) mma_pair(acc[m][2 * d], acc[m][2 * d + 1], a[m], b);
            }
        }
    }

    // The warp's own rows of Q take its rows of dq on the way out.
    if (!live) return;
    bf16* out = tile_q + warp_row * D;
    __syncwarp();
#pragma unroll
    for (int m = 0; m < MT; m++) Tile<D>::put(out + m * 16 * D, acc[m], x.scale, x.scale);
    __syncwarp();
    bf16* to = dq + static_cast<int64_t>(q0 + warp_row) * dq_ld + head * x.head_dim;
    Tile<D>::template store<MT * 16>(out, to, dq_ld, rows - warp_row, chunks);
}

// dv (with DV) and dk (with DK) of WARPS x 16 keys of one key/value head: a loop over the query heads of its group and
// their tiles of BQ queries that see any of the keys. `part` counts the parts of the plan's tile.
template <int D, int BQ, int WARPS, bool DV, bool DK>
DEVICE void attention_dkv(const AttentionBackward& x, int part, bf16* dk, int64_t dk_ld, bf16* dv, int64_t dv_ld) {
    constexpr int BK = WARPS * 16, THREADS = WARPS * WARP;
    // K stays in registers where the sums leave room for it.
    constexpr bool KEEP_K = D <= 64 || (DV && DK && D == 128);

    const int* tile = x.tiles + 5 * blockIdx.y;
    const int k0 = tile[0] + BK * part, k1 = min(tile[1], k0 + BK), base = tile[2];
    if (k0 >= k1) return;
    const int rows = k1 - k0, chunks = x.head_dim / 8, kv_head = blockIdx.x, warp = threadIdx.x / WARP;
    const int group = threadIdx.x % WARP / 4, pair = 2 * (threadIdx.x % 4);
    // Queries from the first key's position to the last that has the last key in its window.
    const int first_key = k0 - base, last_key = k1 - 1 - base;
    int qa = tile[3], qb = tile[4];
    if (part > 0) qa = first_from(x.positions, qa, qb, first_key);
    if (x.window <= 0x7fffffff - last_key) qb = first_from(x.positions, qa, qb, last_key + x.window);
    const int tiles = (qb - qa + BQ - 1) / BQ;

    bf16* tile_k = shared_memory<bf16>();
    bf16* tile_v = tile_k + BK * D;
    bf16* stages = tile_v + BK * D;
    // Of each stage's queries: lse · log2 e, D, and the position.
    float* lse = reinterpret_cast<float*>(stages + 4 * BQ * D);
    float* delta = lse + 2 * BQ;
    int* position = reinterpret_cast<int*>(delta + 2 * BQ);

    const auto fetch = [&](int head, int q, int stage) {
        bf16* to = stages + stage * (2 * BQ * D);
        const bf16* from = x.q + q * x.q_ld + head * x.head_dim;
        Tile<D>::template fetch<BQ, THREADS>(to, from, x.q_ld, qb - q, chunks);
        from = x.d_o + q * x.d_o_ld + head * x.head_dim;
        Tile<D>::template fetch<BQ, THREADS>(to + BQ * D, from, x.d_o_ld, qb - q, chunks);
        cp_async_commit();
    };
    // What a thread holds of the next stage's statistics. A query that is not there has P = 2^-inf.
    float2 next_stats;
    int next_position;
    const auto fetch_stats = [&](int head, int q) {
        if (threadIdx.x < BQ) {
            const int row = min(q + static_cast<int>(threadIdx.x), qb - 1);
            next_stats = x.stats[static_cast<int64_t>(head) * x.queries + row];
            next_position = x.positions[row];
            if (q + static_cast<int>(threadIdx.x) >= qb) next_stats = make_float2(INFINITE, 0.0f);
        }
    };
    const auto store_stats = [&](int stage) {
        if (threadIdx.x < BQ) {
            lse[stage * BQ + threadIdx.x] = next_stats.x;
            delta[stage * BQ + threadIdx.x] = next_stats.y;
            position[stage * BQ + threadIdx.x] = next_position;
        }
    };

    const int column = kv_head * x.head_dim;
    Tile<D>::template fetch<BK, THREADS>(tile_k, x.k + k0 * x.k_ld + column, x.k_ld, rows, chunks);
    Tile<D>::template fetch<BK, THREADS>(tile_v, x.v + k0 * x.v_ld + column, x.v_ld, rows, chunks);
    cp_async_commit();
    int head = kv_head * x.group, q = qa;
    if (tiles > 0) {
        fetch(head, q, 0);
        fetch_stats(head, q);
        store_stats(0);
    }
    const Operand<D> of_k = Operand<D>::rows(tile_k + warp * 16 * D), of_v = Operand<D>::rows(tile_v + warp * 16 * D);
    uint32_t kept[KEEP_K ? D / 16 : 1][4];
    if constexpr (KEEP_K) {
        cp_async_wait<0>();
        __syncthreads();
#pragma unroll
        for (int d = 0; d < D / 16; d++) of_k.load(kept[d], 0, d);
    }
    float sum_k[DK ? D / 8 : 1][4], sum_v[DV ? D / 8 : 1][4];
    zero(sum_k);
    zero(sum_v);
    const float scale_log2 = x.scale * LOG2_E;
    const int warp_first = first_key + warp * 16, warp_last = warp_first + 15;

    int stage = 0;
    for (int i = x.group * tiles; i > 0; i--, stage ^= 1) {
        cp_async_wait<0>();
        __syncthreads();
        const int live = min(BQ, qb - q);
        q += BQ;
        if (q >= qb) {
            q = qa;
            head++;
        }
        if (i > 1) {
            fetch(head, q, stage ^ 1);
            fetch_stats(head, q);
        }
        const int p_first = position[stage * BQ], p_last = position[stage * BQ + live - 1];
        if (warp_first <= p_last && warp_last > p_first - x.window) {
            const bf16* tile_q = stages + stage * (2 * BQ * D);
            const bf16* tile_do = tile_q + BQ * D;
            float s[BQ / 8][4], dp[BQ / 8][4];
            zero(s);
            const Operand<D> of_q = Operand<D>::columns(tile_q);
#pragma unroll
            for (int d = 0; d < D / 16; d++) {
                uint32_t a[4];
                if constexpr (KEEP_K) {
#pragma unroll
                    for (int e = 0; e < 4; e++) a[e] = kept[d][e];
                } else {
                    of_k.load(a, 0, d);
                }
#pragma unroll
                for (int n = 0; n < BQ / 16; n++) {
                    uint32_t b[4];
                    of_q.load(b, n, d);
                    mma_pair(s[2 * n], s[2 * n + 1], a, b);
                }
            }
            if constexpr (DK) {
                zero(dp);
                const Operand<D> of_do = Operand<D>::columns(tile_do);
#pragma unroll
                for (int d = 0; d < D / 16; d++) {
                    uint32_t a[4];
                    of_v.load(a, 0, d);
#pragma unroll
                    for (int n = 0; n < BQ / 16; n++) {
                        uint32_t b[4];
                        of_do.load(b, n, d);
                        mma_pair(dp[2 * n], dp[2 * n + 1], a, b);
                    }
                }
            }
            // S becomes P.
#pragma unroll
            for (int n = 0; n < BQ / 8; n++) {
                const float2 shift = *reinterpret_cast<const float2*>(lse + stage * BQ + n * 8 + pair);
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    s[n][e] = exp2_fast(fmaf(s[n][e], scale_log2, e % 2 == 0 ? -shift.x : -shift.y));
                }
            }
            if (warp_last > p_first || warp_first <= p_last - x.window) {
#pragma unroll
                for (int n = 0; n < BQ / 8; n++) {
                    const int2 p = *reinterpret_cast<const int2*>(position + stage * BQ + n * 8 + pair);
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        const int key = warp_first + group + e / 2 * 8;
                        if (!sees(e % 2 == 0 ? p.x : p.y, key, x.window)) s[n][e] = 0.0f;
                    }
                }
            }
            if constexpr (DK) {
                // dS = P ∘ (dP - D).
#pragma unroll
                for (int n = 0; n < BQ / 8; n++) {
                    const float2 shift = *reinterpret_cast<const float2*>(delta + stage * BQ + n * 8 + pair);
#pragma unroll
                    for (int e = 0; e < 4; e++) dp[n][e] = s[n][e] * (dp[n][e] - (e % 2 == 0 ? shift.x : shift.y));
                }
            }
            if constexpr (DV) {
                const Operand<D> deep = Operand<D>::rows(tile_do);
#pragma unroll
                for (int n = 0; n < BQ / 16; n++) {
                    uint32_t a[4];
                    to_operand(a, s[2 * n], s[2 * n + 1]);
#pragma unroll
                    for (int d = 0; d < D / 16; d++) {
                        uint32_t b[4];
                        deep.load_trans(b, n, d);
                        mma_pair(sum_v[2 * d], sum_v[2 * d + 1], a, b);
                    }
                }
            }
            if constexpr (DK) {
                const Operand<D> deep = Operand<D>::rows(tile_q);
#pragma unroll
                for (int n = 0; n < BQ / 16; n++) {
                    uint32_t a[4];
                    to_operand(a, dp[2 * n], dp[2 * n + 1]);
#pragma unroll
                    for (int d = 0; d < D / 16; d++) {
                        uint32_t b[4];
                        deep.load_trans(b, n, d);
                        mma_pair(sum_k[2 * d], sum_k[2 * d + 1], a, b);
                    }
                }
            }
        }
        if (i > 1) store_stats(stage ^ 1);
    }

    // The warp's own rows of K and V take its rows of dk and dv on the way out, once the copies are in.
    cp_async_wait<0>();
    __syncthreads();
    const int warp_row = warp * 16;
    if (warp_row >= rows) return;
    const auto store = [&](bf16* tile, const float(&sums)[D / 8][4], float factor, bf16* to, int64_t ld) {
        Tile<D>::put(tile + warp_row * D, sums, factor, factor);
        __syncwarp();
        bf16* out = to + static_cast<int64_t>(k0 + warp_row) * ld + column;
        Tile<D>::template store<16>(tile + warp_row * D, out, ld, rows - warp_row, chunks);
    };
    if constexpr (DV) store(tile_v, sum_v, 1.0f, dv, dv_ld);
    if constexpr (DK) store(tile_k, sum_k, x.scale, dk, dk_ld);
}

#define ATTENTION_BACKWARD_INPUTS                                                                                     \
    const int *tiles, const int *positions, const bf16 *q, int64_t q_ld, const bf16 *k, int64_t k_ld, const bf16 *v,  \
        int64_t v_ld, const bf16 *d_o, int64_t d_o_ld, const float *stats, int queries, int group, int head_dim,      \
        int window, float scale
#define ATTENTION_BACKWARD_STRUCT                                                                                   \
    AttentionBackward {                                                                                             \
        tiles, positions, q, q_ld, k, k_ld, v, v_ld, d_o, d_o_ld, reinterpret_cast<const float2*>(stats), queries,  \
            group, head_dim, window, scale                                                                          \
    }

#define ATTENTION_DQ(D, BN, MT, WARPS)                                                                          \
    KERNEL(attention_dq_##D, WARPS* WARP)(ATTENTION_BACKWARD_INPUTS, bf16 * dq, int64_t dq_ld) {                \
        attention_dq<D, BN, MT, WARPS>(ATTENTION_BACKWARD_STRUCT, dq, dq_ld);                                   \
    }
// Both sums in one block.
#define ATTENTION_DKV(D, BQ, WARPS)                                                                                  \
    KERNEL(attention_dkv_##D, WARPS* WARP)(ATTENTION_BACKWARD_INPUTS, bf16 * dk, int64_t dk_ld, bf16 * dv,           \
                                           int64_t dv_ld) {                                                          \
        attention_dkv<D, BQ, WARPS, true, true>(ATTENTION_BACKWARD_STRUCT, blockIdx.z, dk, dk_ld, dv, dv_ld);        \
    }
// For heads whose two sums do not fit in registers: dv and dk by blocks of their own, in turns of z.
#define ATTENTION_DKV_APART(D, BQ, WARPS)                                                                            \
    KERNEL(attention_dkv_##D, WARPS* WARP)(ATTENTION_BACKWARD_INPUTS, bf16 * dk, int64_t dk_ld, bf16 * dv,           \
                                           int64_t dv_ld) {                                                          \
        if (blockIdx.z % 2 == 0) {                                                                                   \
            attention_dkv<D, BQ, WARPS, true, false>(ATTENTION_BACKWARD_STRUCT, blockIdx.z / 2, dk, dk_ld, dv, dv_ld); \
        } else {                                                                                                     \
            attention_dkv<D, BQ, WARPS, false, true>(ATTENTION_BACKWARD_STRUCT, blockIdx.z / 2, dk, dk_ld, dv, dv_ld); \
        }                                                                                                            \
    }
