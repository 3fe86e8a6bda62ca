// The smallest kernels that use a barrier and a warp collective.
#include "common.cuh"

// out[i] = a x[i], for i < n.
KERNEL(smoke_scale, 256)(float* out, const float* x, int64_t n, float a) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) out[i] = a * x[i];
}

// out[row] = sum of x[row, 0..n].
KERNEL(smoke_row_sum, 1024)(float* out, const float* x, int n) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += x[static_cast<int64_t>(blockIdx.x) * n + i];
    sum = block_sum(sum, shared_memory<float>());
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}
