// Warp collectives, tensor cores, asynchronous copies: each kernel right, and broken in one way.
#include "mma.cuh"

// out[i] = the sum of x over the warp, for i < 20. Broken: the shuffles are in the branch, or lanes have left.
KERNEL(lanes_right, 32)(float* out, const float* x, int n) {
    const float sum = warp_sum(static_cast<int>(threadIdx.x) < n ? x[threadIdx.x] : 0.0f);
    if (static_cast<int>(threadIdx.x) < n) out[threadIdx.x] = sum;
}
KERNEL(lanes_divergent, 32)(float* out, const float* x, int n) {
    if (static_cast<int>(threadIdx.x) < n) out[threadIdx.x] = warp_sum(x[threadIdx.x]);
    __syncthreads();
}
KERNEL(lanes_left, 32)(float* out, const float* x, int n) {
    if (static_cast<int>(threadIdx.x) >= n) return;
    out[threadIdx.x] = warp_sum(x[threadIdx.x]);
}
KERNEL(lanes_mismatch, 32)(float* out, const float* x, int n) {
    float v = static_cast<int>(threadIdx.x) < n ? x[threadIdx.x] : 0.0f;
    if (threadIdx.x < 16) {
        v = warp_sum(v);
    } else {
        v += __shfl_down_sync(FULL_MASK, v, 1);
    }
    if (static_cast<int>(threadIdx.x) < n) out[threadIdx.x] = v;
}

// out[i] = x[i ^ 4], n threads, four values a time by cp.async. Broken: no wait, a wait for too few groups, a wait
// without a barrier, a group that was never closed, a next copy into what others still read.
template <int BROKEN>
DEVICE void copy(float* out, const float* x, int n) {
    float* s = shared_memory<float>();
    const int t = threadIdx.x;
    for (int from = 0; from < n; from += 256) {
        const int i = from + t * 4;
        cp_async_16(s + t * 4, x + i, true);
        if (BROKEN != 4) cp_async_commit();
        if (BROKEN == 2) {
            cp_async_wait<1>();
        } else if (BROKEN != 1) {
            cp_async_wait<0>();
        }
        if (BROKEN != 3) __syncthreads();
        for (int j = 0; j < 4; j++) out[i + j] = s[(t * 4 + j) ^ 4];
        if (BROKEN != 5) __syncthreads();
    }
}
KERNEL(copy_right, 64)(float* out, const float* x, int n) { copy<0>(out, x, n); }
KERNEL(copy_no_wait, 64)(float* out, const float* x, int n) { copy<1>(out, x, n); }
KERNEL(copy_short_wait, 64)(float* out, const float* x, int n) { copy<2>(out, x, n); }
KERNEL(copy_no_barrier, 64)(float* out, const float* x, int n) { copy<3>(out, x, n); }
KERNEL(copy_no_commit, 64)(float* out, const float* x, int n) { copy<4>(out, x, n); }
KERNEL(copy_too_early, 64)(float* out, const float* x, int n) { copy<5>(out, x, n); }

// A copy that is not valid gives zeros: out[i] = i < n ? x[i] : 0, for i < 128.
KERNEL(copy_zeros_right, 32)(float* out, const float* x, int n) {
    float* s = shared_memory<float>();
    const int i = threadIdx.x * 4;
    cp_async_16(s + i, i < n ? x + i : x, i < n);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    for (int j = 0; j < 4; j++) out[i + j] = s[(i + j)];
}

// out [16, 8] = a [16, 16] b [16, 8] + out from fragments filled by the layouts that mma.cuh documents.
KERNEL(mma_fragments, 32)(float* out, const float* a, const float* b) {
    const int group = threadIdx.x / 4, pair = 2 * (threadIdx.x % 4);
    uint32_t fa[4], fb[2];
    for (int i = 0; i < 4; i++) {
        const float* p = a + (group + i % 2 * 8) * 16 + pair + i / 2 * 8;
        fa[i] = pack_bf16(p[0], p[1]);
    }
    for (int i = 0; i < 2; i++) {
        const float* p = b + (pair + i * 8) * 8 + group;
        fb[i] = pack_bf16(p[0], p[8]);
    }
    float c[4] = {1.0f, 1.0f, 1.0f, 1.0f};
    mma_16816(c, fa, fb);
    for (int i = 0; i < 4; i++) out[(group + i / 2 * 8) * 8 + pair + i % 2] = c[i];
}

// The same product from shared memory by ldmatrix: A [16, 16] as it is, B [16, 8] transposed.
KERNEL(mma_ldmatrix, 32)(float* out, const float* a, const float* b) {
    bf16* sa = shared_memory<bf16>();
    bf16* sb = sa + 16 * 16;
    const int lane = threadIdx.x;
    for (int i = lane; i < 256; i += WARP) sa[i] = to_bf16(a[i]);
    for (int i = lane; i < 128; i += WARP) sb[i / 8 * 16 + i % 8] = to_bf16(b[i]);
    for (int i = lane; i < 128; i += WARP) sb[i / 8 * 16 + 8 + i % 8] = to_bf16(0.0f);
    __syncwarp();
    uint32_t fa[4], fb[4];
    ldmatrix_x4(fa, sa + lane % 16 * 16 + lane / 16 * 8);
    ldmatrix_x4_trans(fb, sb + lane % 16 * 16 + lane / 16 * 8);
    float c[4] = {1.0f, 1.0f, 1.0f, 1.0f};
    const uint32_t low[2] = {fb[0], fb[1]}, high[2] = {fb[2], fb[3]};
    mma_16816(c, fa, low);
    mma_16816(c, fa, high);
    const int group = lane / 4, pair = 2 * (lane % 4);
    for (int i = 0; i < 4; i++) out[(group + i / 2 * 8) * 8 + pair + i % 2] = c[i];
}

// out[lane * 4 ..] = what a lane gets by each shuffle: sources as CUDA documents them.
KERNEL(shuffles, 32)(float* out, const float* x, int width) {
    const int lane = threadIdx.x;
    out[lane * 4] = __shfl_sync(FULL_MASK, x[lane], 3, width);
    out[lane * 4 + 1] = __shfl_up_sync(FULL_MASK, x[lane], 2, width);
    out[lane * 4 + 2] = __shfl_down_sync(FULL_MASK, x[lane], 2, width);
    out[lane * 4 + 3] = __shfl_xor_sync(FULL_MASK, x[lane], 5, width);
}

// out[lane * 3 ..] = ballot, any and all of x < n / 32.
KERNEL(votes, 32)(float* out, const float* x, int n) {
    const bool vote = x[threadIdx.x] < static_cast<float>(n) / 32.0f;
    out[threadIdx.x * 3] = static_cast<float>(__popc(__ballot_sync(FULL_MASK, vote)));
    out[threadIdx.x * 3 + 1] = static_cast<float>(__any_sync(FULL_MASK, vote));
    out[threadIdx.x * 3 + 2] = static_cast<float>(__all_sync(FULL_MASK, vote));
}

// Waits for itself: out[0] = barriers per launch, n of them. For timing.
KERNEL(many_barriers, 1024)(float* out, const float*, int n) {
    for (int i = 0; i < n; i++) __syncthreads();
    if (threadIdx.x == 0) out[0] = static_cast<float>(n);
}

// The inner loop of a product, n steps: a fragment from shared memory, eight products with it. For timing.
KERNEL(many_products, 128)(float* out, const float*, int n) {
    bf16* s = shared_memory<bf16>() + threadIdx.x / WARP * 256;
    const int lane = threadIdx.x % WARP;
    for (int i = lane; i < 256; i += WARP) s[i] = to_bf16(1.0f);
    __syncwarp();
    float c[8][4] = {};
    for (int i = 0; i < n; i++) {
        uint32_t a[4];
        ldmatrix_x4(a, s + lane % 16 * 16 + lane / 16 * 8);
        for (int j = 0; j < 8; j++) {
            const uint32_t b[2] = {a[0], a[1]};
            mma_16816(c[j], a, b);
        }
    }
    if (threadIdx.x == 0) out[0] = c[0][0];
}
