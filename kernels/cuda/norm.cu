// The norm of all gradients, and what clipping makes of it.
//
//   out = [norm, factor, finite],  norm = sqrt(sum of x²),  factor = min(1, limit / (norm + 1e-6))
//
// x [n] f32, partials [blocks] f64, out [3] f32. A limit of infinity turns clipping off: the factor is 1. `finite` is 1
// where norm is finite, else 0; one NaN or infinity anywhere makes it 0. The optimizer reads both on the device
// (adamw.cu), so that the host waits for nothing.
//
// With a guard [1] f32 the flag is sticky: once a norm was not finite, or a loss that norm_watch has seen, the guard is 0
// and `finite` with it, whatever comes after, until the host writes 1 again. So no update takes place behind a bad step,
// however late the host hears of it. A loss can be infinite where its gradient is finite: a target whose logit is -inf.
//
// Squares are f32, summed sixteen at a time in a tree, and these sums are added in f64. Where the sixteen together
// leave the range in which f32 squares are good, they are squared again in f64: the result is right to 1e-6 for every
// x that f32 can hold. Squaring everything in f64 would hide behind the memory on data centre cards alone; the others
// convert and add two f64 per clock and multiprocessor.
//
// The number of blocks depends on n alone and every sum is a fixed tree: the same x gives the same bits on every card.
//
// Bytes per value: 4.
#include "common.cuh"

constexpr int VECTORS = 4;
// Half of f32's range on both sides: what is lost below the lower end is less than a rounding of the sum.
constexpr float LEAST = 1e-30f, MOST = 1e37f;

DEVICE double warp_sum(double v) {
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(FULL_MASK, v, offset);
    return v;
}

// The sum over the block, on thread 0. `scratch` is shared memory for 32 doubles.
DEVICE double sum_on_first(double v, double* scratch) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    v = warp_sum(v);
    if (lane == 0) scratch[warp] = v;
    __syncthreads();
    return warp == 0 ? warp_sum(lane < warps ? scratch[lane] : 0.0) : 0.0;
}

DEVICE float squares(float4 v) { return (v.x * v.x + v.y * v.y) + (v.z * v.z + v.w * v.w); }

DEVICE double square(float v) { return static_cast<double>(v) * static_cast<double>(v); }

DEVICE double wide_squares(float4 v) { return (square(v.x) + square(v.y)) + (square(v.z) + square(v.w)); }

DEVICE double run(const float4 (&v)[VECTORS]) {
    const float sum = (squares(v[0]) + squares(v[1])) + (squares(v[2]) + squares(v[3]));
    // Not so for NaN either.
    if (sum > LEAST && sum < MOST) return static_cast<double>(sum);
    return (wide_squares(v[0]) + wide_squares(v[1])) + (wide_squares(v[2]) + wide_squares(v[3]));
}

KERNEL(norm_partials, 256)(const float* __restrict__ x, int64_t n, double* __restrict__ partials) {
    CHECK_ALIGNED(x, 16);
    const float4* vectors = reinterpret_cast<const float4*>(x);
    const int64_t count = n / 4, step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    double sum = 0.0;
    for (int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; at < count; at += VECTORS * step) {
        float4 v[VECTORS];
#pragma unroll
        for (int i = 0; i < VECTORS; i++) {
            if (at + i * step < count) {
                v[i] = vectors[at + i * step];
            } else {
                v[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            }
        }
        sum += run(v);
    }
    if (blockIdx.x == 0 && threadIdx.x < n % 4) sum += square(x[count * 4 + threadIdx.x]);
    sum = sum_on_first(sum, shared_memory<double>());
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

// One block, with a thread for every partial sum.
KERNEL(norm_finish, 512)(const double* __restrict__ partials, int count, float limit, float* guard,
                         float* __restrict__ out) {
    const int t = threadIdx.x;
    const double sum = sum_on_first(t < count ? partials[t] : 0.0, shared_memory<double>());
    if (t > 0) return;
    const float norm = static_cast<float>(sqrt(sum));
    float factor = 1.0f;
    if (limit < INFINITE) {
        factor = limit / (norm + 1e-6f);
        // A NaN stays.
        if (factor > 1.0f) factor = 1.0f;
    }
    out[0] = norm;
    out[1] = factor;
    float finite = norm < INFINITE ? 1.0f : 0.0f;
    if (guard != nullptr) {
        if (guard[0] != 1.0f) finite = 0.0f;
        guard[0] = finite;
    }
    out[2] = finite;
}

// One block. Trips the guard where a loss is not finite, and never sets it.
KERNEL(norm_watch, 1024)(const float* __restrict__ losses, int64_t n, float* __restrict__ guard) {
    float bad = 0.0f;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
        // Not so for NaN either.
        if (!(fabsf(losses[i]) < INFINITE)) bad = 1.0f;
    }
    bad = block_max(bad, shared_memory<float>());
    if (threadIdx.x == 0 && bad > 0.0f) guard[0] = 0.0f;
}
