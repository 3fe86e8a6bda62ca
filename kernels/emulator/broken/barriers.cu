// Shared memory and barriers: each kernel right, and broken in one way.
#include "common.cuh"

// out[i] = x[n - 1 - i] through shared memory, n threads. Broken: no barrier between writing and reading.
template <bool RIGHT>
DEVICE void reverse(float* out, const float* x, int n) {
    float* s = shared_memory<float>();
    const int i = threadIdx.x;
    s[i] = x[i];
    if (RIGHT) __syncthreads();
    out[i] = s[n - 1 - i];
}
KERNEL(reverse_right, 256)(float* out, const float* x, int n) { reverse<true>(out, x, n); }
KERNEL(reverse_no_barrier, 256)(float* out, const float* x, int n) { reverse<false>(out, x, n); }

// out[i] = the sum of x, n threads, by a tree in shared memory. Broken: one step does not wait for the last.
template <bool RIGHT>
DEVICE void tree(float* out, const float* x, int n) {
    float* s = shared_memory<float>();
    const int i = threadIdx.x;
    s[i] = x[i];
    __syncthreads();
    for (int half = n / 2; half > 0; half /= 2) {
        if (i < half) s[i] += s[i + half];
        if (RIGHT || half != 64) __syncthreads();
    }
    out[i] = s[0];
}
KERNEL(tree_right, 256)(float* out, const float* x, int n) { tree<true>(out, x, n); }
KERNEL(tree_race, 256)(float* out, const float* x, int n) { tree<false>(out, x, n); }

// out[t * n + i] = x[t * n + (i + 1) % n] for four tiles through one buffer. Broken: the next tile overwrites what
// others still read.
template <bool RIGHT>
DEVICE void rotate(float* out, const float* x, int n) {
    float* s = shared_memory<float>();
    const int i = threadIdx.x;
    for (int t = 0; t < 4; t++) {
        s[i] = x[t * n + i];
        __syncthreads();
        out[t * n + i] = s[(i + 1) % n];
        if (RIGHT) __syncthreads();
    }
}
KERNEL(rotate_right, 256)(float* out, const float* x, int n) { rotate<true>(out, x, n); }
KERNEL(rotate_overwrites, 256)(float* out, const float* x, int n) { rotate<false>(out, x, n); }

// out[i] = x[i] + x[i ^ 1], between lanes of a warp. Broken: nothing orders the lanes' accesses; a shuffle does not.
template <bool RIGHT>
DEVICE void neighbours(float* out, const float* x, int) {
    float* s = shared_memory<float>();
    const int i = threadIdx.x;
    const float v = x[i];
    s[i] = v;
    if (RIGHT) {
        __syncwarp();
    } else {
        __shfl_xor_sync(FULL_MASK, v, 1);
    }
    out[i] = v + s[i ^ 1];
}
KERNEL(neighbours_right, 256)(float* out, const float* x, int n) { neighbours<true>(out, x, n); }
KERNEL(neighbours_unordered, 256)(float* out, const float* x, int n) { neighbours<false>(out, x, n); }

// out[i] = the sum of x over a warp of 24 partial sums. Broken: the other lanes read what nobody has written.
template <bool RIGHT>
DEVICE void partial(float* out, const float* x, int) {
    float* s = shared_memory<float>();
    const int i = threadIdx.x;
    if (i < 24) s[i] = x[i];
    __syncthreads();
    const float v = !RIGHT || i < 24 ? s[i] : 0.0f;
    out[i] = warp_sum(v);
}
KERNEL(partial_right, 32)(float* out, const float* x, int n) { partial<true>(out, x, n); }
KERNEL(partial_uninitialised, 32)(float* out, const float* x, int n) { partial<false>(out, x, n); }

// As reverse. Broken: the upper half of the block does not come to the barrier, or comes to another one, or lanes of
// one warp wait at different places.
KERNEL(reverse_half_skips, 256)(float* out, const float* x, int n) {
    float* s = shared_memory<float>();
    const int i = threadIdx.x;
    s[i] = x[i];
    if (i < n / 2) __syncthreads();
    out[i] = s[n - 1 - i];
}
KERNEL(reverse_two_barriers, 256)(float* out, const float* x, int n) {
    float* s = shared_memory<float>();
    const int i = threadIdx.x;
    s[i] = x[i];
    if (i < n / 2) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    out[i] = s[n - 1 - i];
}
KERNEL(reverse_warp_at_barrier, 256)(float* out, const float* x, int n) {
    float* s = shared_memory<float>();
    const int i = threadIdx.x;
    s[i] = x[i];
    if (i % WARP == 3) {
        __syncthreads();
    } else {
        __syncwarp();
        __syncthreads();
    }
    out[i] = s[n - 1 - i];
}

// out[i] = x[i] + x[0], n threads, where threads without work have returned: a barrier does not wait for them.
KERNEL(early_return_right, 256)(float* out, const float* x, int n) {
    float* s = shared_memory<float>();
    const int i = threadIdx.x;
    if (i >= n) return;
    if (i == 0) s[0] = x[0];
    __syncthreads();
    out[i] = x[i] + s[0];
}

// As reverse. Broken: one value too many for the shared memory.
KERNEL(reverse_past_shared, 256)(float* out, const float* x, int n) {
    float* s = shared_memory<float>();
    const int i = threadIdx.x;
    s[i + 1] = x[i];
    __syncthreads();
    out[i] = s[n - i];
}
KERNEL(reverse_before_shared, 256)(float* out, const float* x, int n) {
    float* s = shared_memory<float>();
    const int i = threadIdx.x;
    s[i - 1] = x[i];
    __syncthreads();
    out[i] = s[n - 2 - i];
}
