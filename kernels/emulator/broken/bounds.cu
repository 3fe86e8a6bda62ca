// Ranges and alignment in global memory: each kernel right, and broken in one way.
#include "common.cuh"

// out[i] = 2 x[i] for i < n. Broken: one thread too many; the value after the last is a thread's too.
template <bool RIGHT>
DEVICE void twice(float* out, const float* x, int n) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (RIGHT ? i < n : i <= n) out[i] = 2.0f * x[i];
}
KERNEL(twice_right, 128)(float* out, const float* x, int n) { twice<true>(out, x, n); }
KERNEL(twice_one_more, 128)(float* out, const float* x, int n) { twice<false>(out, x, n); }

// out[row] = the sum of a row of n values, one row per block. Broken: the mask of the last step is one short, or the
// last vector of a row reaches into the next.
template <int BROKEN>
DEVICE void row(float* out, const float* x, int n) {
    const float* from = x + static_cast<int64_t>(blockIdx.x) * n;
    float sum = 0.0f;
    for (int i = threadIdx.x * 4; i < n; i += blockDim.x * 4) {
        for (int j = 0; j < 4; j++) {
            if (BROKEN == 1 ? i + j < n - 1 : BROKEN == 2 || i + j < n) sum += from[i + j];
        }
    }
    sum = block_sum(sum, shared_memory<float>());
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}
KERNEL(row_right, 1024)(float* out, const float* x, int n) { row<0>(out, x, n); }
KERNEL(row_mask_short, 1024)(float* out, const float* x, int n) { row<1>(out, x, n); }
KERNEL(row_tail, 1024)(float* out, const float* x, int n) { row<2>(out, x, n); }

// out[i] = x[i] for n threads of two values each. Broken: vectors that start at odd values.
KERNEL(pairs_right, 128)(float* out, const float* x, int) {
    const int i = threadIdx.x * 2;
    *reinterpret_cast<float2*>(out + i) = *reinterpret_cast<const float2*>(x + i);
}
KERNEL(pairs_unaligned, 128)(float* out, const float* x, int n) {
    const int i = threadIdx.x * 2 + 1;
    if (i + 1 < n) *reinterpret_cast<float2*>(out + i) = *reinterpret_cast<const float2*>(x + i);
    if (threadIdx.x == 0) out[0] = x[0], out[n - 1] = x[n - 1];
}

// out[i] = x[i], n threads in blocks of 32. Broken: blocks overlap, and add to what another has written.
KERNEL(blocks_right, 32)(float* out, const float* x, int n) {
    const int i = blockIdx.x * 32 + threadIdx.x;
    if (i < n) out[i] = x[i];
}
KERNEL(blocks_overlap, 32)(float* out, const float* x, int n) {
    const int i = blockIdx.x * 31 + threadIdx.x;
    if (i < n) out[i] = x[i];
}

// out[i] = x[i]. Broken: an index that is divided by zero, and no address at all.
KERNEL(division_by_zero, 32)(float* out, const float* x, int n) { out[threadIdx.x] = x[threadIdx.x / (n - 64)]; }
KERNEL(null_pointer, 32)(float* out, const float*, int) {
    const float* volatile none = nullptr;
    out[threadIdx.x] = none[threadIdx.x];
}
