// Attention forward for one tile of 128 queries of one head; formulas in attention.cu.
//
// A warp owns MT x 16 queries: scores, the softmax and P (rounded, as the next product's A) stay in its registers, only
// K and V pass through shared memory. While K is multiplied V arrives, while V is multiplied the next K does. With MT 2
// one ldmatrix of K or V feeds four mma, so that the tensor cores and not shared memory set the pace; at head size 128,
// with 255 registers and 64 KiB, two blocks fit an SM, and the softmax of one runs beside the products of the other.
#pragma once

#include "attention.cuh"

struct AttentionForward {
    const int* tiles;
    const int* positions;
    const bf16* q;
    int64_t q_ld;
    const bf16* k;
    int64_t k_ld;
    const bf16* v;
    int64_t v_ld;
    bf16* o;
    int64_t o_ld;
    float* lse;
    int heads, group, head_dim, window;
    float scale;
};

template <int D, int BN, int MT, int WARPS>
DEVICE void attention_forward(const AttentionForward& x) {
    constexpr int BM = WARPS * MT * 16, THREADS = WARPS * WARP;
    static_assert(BM == 128, "a tile of the plan");
    // Small heads keep Q in registers; for larger ones the sums need the room.
    constexpr bool KEEP_Q = D <= 64;

    const int q0 = x.tiles[3 * blockIdx.y], q1 = x.tiles[3 * blockIdx.y + 1], k0 = x.tiles[3 * blockIdx.y + 2];
    if (q0 >= q1) return;
    const int rows = q1 - q0, chunks = x.head_dim / 8, head = blockIdx.x, warp = threadIdx.x / WARP;
    const int group = threadIdx.x % WARP / 4, pair = 2 * (threadIdx.x % 4);
    const int low = max(0, x.positions[q0] - x.window + 1), high = x.positions[q1 - 1] + 1;

    bf16* tile_q = shared_memory<bf16>();
    bf16* tile_k = tile_q + BM * D;
    bf16* tile_v = tile_k + BN * D;
    const int kv_column = head / x.group * x.head_dim;
    const bf16* k = x.k + static_cast<int64_t>(k0 + low) * x.k_ld + kv_column;
    Tile<D>::template fetch<BM, THREADS>(tile_q, x.q + q0 * x.q_ld + head * x.head_dim, x.q_ld, rows, chunks);
    Tile<D>::template fetch<BN, THREADS>(tile_k, k, x.k_ld, high - low, chunks);
    cp_async_commit();

    const int warp_row = warp * MT * 16;
    const bool live = warp_row < rows;
    const int warp_first = x.positions[q0 + min(warp_row, rows - 1)];
    const int warp_last = x.positions[q0 + min(warp_row + MT * 16, rows) - 1];
    float largest[MT][2], sum[MT][2], acc[MT][D / 8][4];
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            largest[m][r] = -INFINITE;
            sum[m][r] = 0.0f;
        }
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) acc[m][n][e] = 0.0f;
        }
    }

    const Operand<D> of_q = Operand<D>::rows(tile_q + warp_row * D);
    const Operand<D> of_k = Operand<D>::columns(tile_k), of_v = Operand<D>::rows(tile_v);
    const float scale_log2 = x.scale * LOG2_E;
    uint32_t kept[KEEP_Q ? MT : 1][KEEP_Q ? D / 16 : 1][4];

    for (int key = low; key < high; key += BN) {
        cp_async_wait<0>();
        __syncthreads();
        const bf16* v = x.v + static_cast<int64_t>(k0 + key) * x.v_ld + kv_column;
        Tile<D>::template fetch<BN, THREADS>(tile_v, v, x.v_ld, high - key, chunks);
        cp_async_commit();

        if (KEEP_Q && key == low) {
#pragma unroll
            for (int m = 0; m < (KEEP_Q ? MT : 0); m++) {
#pragma unroll
                for (int d = 0; d < D / 16; d++) of_q.load(kept[m][d], m, d);
            }
        }
        const bool seen = live && key <= warp_last && key + BN - 1 > warp_first - x.window;
        float s[MT][BN / 8][4];
#pragma unroll
        for (int m = 0; m < MT; m++) {
#pragma unroll
            for (int n = 0; n < BN / 8; n++) {
#pragma unroll
                for (int e = 0; e < 4; e++) s[m][n][e] = 0.0f;
            }
        }
        if (seen) {
#pragma unroll
            for (int d = 0; d < D / 16; d++) {
                uint32_t a[MT][4];
#pragma unroll
                for (int m = 0; m < MT; m++) {
                    if constexpr (KEEP_Q) {
#pragma unroll
                        for (int e = 0; e < 4; e++) a[m][e] = kept[m][d][e];
                    } else {
                        of_q.load(a[m], m, d);
                    }
                }
#pragma unroll
                for (int n = 0; n < BN / 16; n++) {
                    uint32_t b[4];
                    of_k.load(b, n, d);
#pragma unroll
                    for (int m = 0; m < MT; m++) mma_pair(s[m][2 * n], s[m][2 * n + 1], a[m], b);
                }
            }
        }
        cp_async_wait<0>();
        __syncthreads();
        if (key + BN < high) {
            k = x.k + static_cast<int64_t>(k0 + key + BN) * x.k_ld + kv_column;
            Tile<D>::template fetch<BN, THREADS>(tile_k, k, x.k_ld, high - key - BN, chunks);
        }
        cp_async_commit();
        if (!seen) continue;

        if (key + BN - 1 > warp_first || key <= warp_last - x.window) {
#pragma unroll
            for (int m = 0; m < MT; m++) {
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    // Read again for each tile at an edge: there are few, and registers are short. Rows beyond the last
                    // query stand for it; nothing of them is written.
                    const int* tile = x.tiles + 3 * blockIdx.y;
                    const int p = x.positions[min(tile[0] + warp_row + m * 16 + r * 8 + group, tile[1] - 1)];
#pragma unroll
                    for (int n = 0; n < BN / 8; n++) {
#pragma unroll
                        for (int e = 0; e < 2; e++) {
                            if (!sees(p, key + n * 8 + pair + e, x.window)) s[m][n][2 * r + e] = -INFINITE;
                        }
                    }
                }
            }
        }

        // The subtracted maximum follows only where it has grown by more than a factor of 2^8: any reference is as
        // exact, and the sums rarely need a pass.
        float fade[MT][2];
        bool grown = false;
#pragma unroll
        for (int m = 0; m < MT; m++) {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float top = s[m][0][2 * r];
#pragma unroll
                for (int n = 0; n < BN / 8; n++) top = fmaxf(top, fmaxf(s[m][n][2 * r], s[m][n][2 * r + 1]));
                top = fmaxf(largest[m][r], row_max(top));
                const float growth = (top - largest[m][r]) * scale_log2;
                const bool grows = growth > 8.0f;
                fade[m][r] = grows ? exp2_fast(-growth) : 1.0f;
                largest[m][r] = grows ? top : largest[m][r];
                grown |= grows;
            }
        }
        if (__any_sync(FULL_MASK, grown)) {
#pragma unroll
            for (int m = 0; m < MT; m++) {
#pragma unroll
                for (int r = 0; r < 2; r++) sum[m][r] *= fade[m][r];
#pragma unroll
                for (int n = 0; n < D / 8; n++) {
#pragma unroll
                    for (int e = 0; e < 4; e++) acc[m][n][e] *= fade[m][e / 2];
                }
            }
        }
#pragma unroll
        for (int m = 0; m < MT; m++) {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                // A row that has seen nothing yet: every power below is 2^-inf.
                const float shift = largest[m][r] == -INFINITE ? 0.0f : largest[m][r] * scale_log2;
#pragma unroll
                for (int n = 0; n < BN / 8; n++) {
#pragma unroll
                    for (int e = 2 * r; e < 2 * r + 2; e++) {
                        s[m][n][e] = exp2_fast(fmaf(s[m][n][e], scale_log2, -shift));
                        sum[m][r] += s[m][n][e];
                    }
                }
            }
        }
#pragma unroll
        for (int n = 0; n < BN / 16; n++) {
            uint32_t a[MT][4];
#pragma unroll
            for (int m = 0; m < MT; m++) to_operand(a[m], s[m][2 * n], s[m][2 * n + 1]);
#pragma unroll
            for (int d = 0; d < D / 16; d++) {
                uint32_t b[4];
                of_v.load_trans(b, n, d);
#pragma unroll
                for (int m = 0; m < MT; m++) mma_pair(acc[m][2 * d], acc[m][2 * d + 1], a[m], b);
            }
        }
    }

    // The warp's own rows of Q have been read: they take its rows of O on the way out.
    if (!live) return;
    bf16* out = tile_q + warp_row * D;
#pragma unroll
    for (int m = 0; m < MT; m++) {
        float inverse[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float total = row_sum(sum[m][r]);
            inverse[r] = 1.0f / total;
            const int row = warp_row + m * 16 + r * 8 + group;
            if (pair == 0 && row < rows) {
                x.lse[static_cast<int64_t>(q0 + row) * x.heads + head] = largest[m][r] * x.scale + logf(total);
            }
        }
        Tile<D>::put(out + m * 16 * D, acc[m], inverse[0], inverse[1]);
    }
    __syncwarp();
    bf16* to = x.o + static_cast<int64_t>(q0 + warp_row) * x.o_ld + head * x.head_dim;
    Tile<D>::template store<MT * 16>(out, to, x.o_ld, rows - warp_row, chunks);
}

#define ATTENTION_FORWARD(D, BN, MT, WARPS)                                                                           \
    KERNEL(attention_forward_##D, WARPS* WARP)(                                                                       \
        const int* tiles, const int* positions, const bf16* q, int64_t q_ld, const bf16* k, int64_t k_ld,             \
        const bf16* v, int64_t v_ld, bf16* o, int64_t o_ld, float* lse, int heads, int group, int head_dim,           \
        int window, float scale) {                                                                                    \
        attention_forward<D, BN, MT, WARPS>({tiles, positions, q, q_ld, k, k_ld, v, v_ld, o, o_ld, lse, heads, group, \
                                             head_dim, window, scale});                                               \
    }
