// RMSNorm, forward and backward.
//
//   rstd = 1 / sqrt(mean(x²) + eps),  y = bf16(x rstd) ∘ w        (Hugging Face's order: two roundings)
//   dx  += rstd (g - x̂ mean(g ∘ x̂)),  g = dy ∘ w,  x̂ = x rstd     (dx holds the residual's gradient before)
//
// x, y, dy, dx [rows, d] bf16 with leading dimensions; w [d] bf16; rstd [rows] f32, the one thing saved. The backward
// can write y again, which the gradient of a LoRA factor needs and nobody keeps. Statistics and sums are f32.
// A row whose squares overflow gets NaN: the formula would give zeros, and a loss that looks sound.
//
// Bytes per row: 4 d forward; 8 d backward, 10 d with y (w stays in cache).
//
// A row is read once and stays in registers until its sum is known. Up to d = 1024 a warp holds a row and a block
// eight of them; up to d = 16384 a block holds one. Whatever is longer or not aligned takes `_any`, which reads twice.
#include "rows.cuh"

#define RMS_NORM                                                                                               \
    const bf16 *__restrict__ x, int64_t ld_x, const bf16 *__restrict__ w, float eps, bf16 *__restrict__ y,     \
        int64_t ld_y, float *__restrict__ rstd, int rows, int d

#define RMS_NORM_BACKWARD                                                                                      \
    const bf16 *__restrict__ dy, int64_t ld_dy, const bf16 *__restrict__ x, int64_t ld_x,                      \
        const bf16 *__restrict__ w, const float *__restrict__ rstd, bf16 *__restrict__ dx, int64_t ld_dx,      \
        bf16 *__restrict__ y, int64_t ld_y, int rows, int d

DEVICE float reciprocal_root(float squares, int d, float eps) {
    const float mean = squares / static_cast<float>(d);
    return mean < INFINITE ? 1.0f / sqrtf(mean + eps) : not_a_number();
}

// The row of this warp or block; none where it is not below `rows`.
template <bool WARP_ROW>
DEVICE int64_t own_row() {
    return WARP_ROW ? static_cast<int64_t>(blockIdx.x) * (blockDim.x / WARP) + threadIdx.x / WARP : blockIdx.x;
}

template <bool WARP_ROW>
DEVICE float row_sum(float v) {
    return WARP_ROW ? warp_sum(v) : block_sum(v, shared_memory<float>());
}

template <int VECTORS, bool WARP_ROW>
DEVICE void rms_norm(RMS_NORM) {
    const int threads = WARP_ROW ? WARP : blockDim.x, lane = WARP_ROW ? threadIdx.x % WARP : threadIdx.x;
    const int64_t row = own_row<WARP_ROW>();
    if (row >= rows) return;
    x += row * ld_x;
    y += row * ld_y;

    Packed<8> kept[VECTORS], weight[VECTORS];
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        const int at = (v * threads + lane) * 8;
        if (at < d) {
            load_packed(x + at, kept[v]);
            load_packed(w + at, weight[v]);
        } else {
            splat(0, kept[v]);
        }
    }
    float squares = 0.0f;
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        float values[8];
        unpack(kept[v], values);
#pragma unroll
        for (int i = 0; i < 8; i++) squares += values[i] * values[i];
    }
    const float r = reciprocal_root(row_sum<WARP_ROW>(squares), d, eps);
    if (lane == 0) rstd[row] = r;
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        const int at = (v * threads + lane) * 8;
        if (at < d) {
            float values[8], factors[8];
            unpack(kept[v], values);
            unpack(weight[v], factors);
#pragma unroll
            for (int i = 0; i < 8; i++) values[i] *= r;
            round_all(values);
#pragma unroll
            for (int i = 0; i < 8; i++) values[i] *= factors[i];
            store_packed(y + at, pack(values));
        }
    }
}

template <int VECTORS, bool WARP_ROW>
DEVICE void rms_norm_backward(RMS_NORM_BACKWARD) {
    const int threads = WARP_ROW ? WARP : blockDim.x, lane = WARP_ROW ? threadIdx.x % WARP : threadIdx.x;
    const int64_t row = own_row<WARP_ROW>();
    if (row >= rows) return;
    dy += row * ld_dy;
    x += row * ld_x;
    dx += row * ld_dx;

    Packed<8> given[VECTORS], kept[VECTORS], weight[VECTORS], residual[VECTORS];
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        const int at = (v * threads + lane) * 8;
        if (at < d) {
            load_packed(dy + at, given[v]);
            load_packed(x + at, kept[v]);
            load_packed(dx + at, residual[v]);
            load_packed(w + at, weight[v]);
        } else {
            splat(0, given[v]);
            splat(0, kept[v]);
            splat(0, weight[v]);
        }
    }
    const float r = rstd[row];
    float dot = 0.0f;
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        float g[8], values[8], factors[8];
        unpack(given[v], g);
        unpack(kept[v], values);
        unpack(weight[v], factors);
#pragma unroll
        for (int i = 0; i < 8; i++) dot += g[i] * factors[i] * values[i];
    }
    const float mean = row_sum<WARP_ROW>(dot) * r / static_cast<float>(d);
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        const int at = (v * threads + lane) * 8;
        if (at < d) {
            float g[8], values[8], factors[8], out[8];
            unpack(given[v], g);
            unpack(kept[v], values);
            unpack(weight[v], factors);
            unpack(residual[v], out);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                values[i] *= r;
                out[i] += r * (g[i] * factors[i] - values[i] * mean);
            }
            store_packed(dx + at, pack(out));
            if (y != nullptr) {
                round_all(values);
#pragma unroll
                for (int i = 0; i < 8; i++) values[i] *= factors[i];
                store_packed(y + row * ld_y + at, pack(values));
            }
        }
    }
}

#define PASS_RMS_NORM x, ld_x, w, eps, y, ld_y, rstd, rows, d
#define PASS_RMS_NORM_BACKWARD dy, ld_dy, x, ld_x, w, rstd, dx, ld_dx, y, ld_y, rows, d

// Up to d = 256, 512, 1024.
KERNEL(rms_norm_warp_1, 256)(RMS_NORM) { rms_norm<1, true>(PASS_RMS_NORM); }
KERNEL(rms_norm_warp_2, 256)(RMS_NORM) { rms_norm<2, true>(PASS_RMS_NORM); }
KERNEL(rms_norm_warp_4, 256)(RMS_NORM) { rms_norm<4, true>(PASS_RMS_NORM); }
// Up to d = 2048, 8192, 16384.
KERNEL(rms_norm_block_1, 256)(RMS_NORM) { rms_norm<1, false>(PASS_RMS_NORM); }
KERNEL(rms_norm_block_2, 512)(RMS_NORM) { rms_norm<2, false>(PASS_RMS_NORM); }
KERNEL(rms_norm_block_4, 512)(RMS_NORM) { rms_norm<4, false>(PASS_RMS_NORM); }

KERNEL(rms_norm_backward_warp_1, 256)(RMS_NORM_BACKWARD) { rms_norm_backward<1, true>(PASS_RMS_NORM_BACKWARD); }
KERNEL(rms_norm_backward_warp_2, 256)(RMS_NORM_BACKWARD) { rms_norm_backward<2, true>(PASS_RMS_NORM_BACKWARD); }
KERNEL(rms_norm_backward_warp_4, 256)(RMS_NORM_BACKWARD) { rms_norm_backward<4, true>(PASS_RMS_NORM_BACKWARD); }
KERNEL(rms_norm_backward_block_1, 256)(RMS_NORM_BACKWARD) { rms_norm_backward<1, false>(PASS_RMS_NORM_BACKWARD); }
KERNEL(rms_norm_backward_block_2, 512)(RMS_NORM_BACKWARD) { rms_norm_backward<2, false>(PASS_RMS_NORM_BACKWARD); }
KERNEL(rms_norm_backward_block_4, 512)(RMS_NORM_BACKWARD) { rms_norm_backward<4, false>(PASS_RMS_NORM_BACKWARD); }

KERNEL(rms_norm_any, 256)(RMS_NORM) {
    const int64_t row = blockIdx.x;
    x += row * ld_x;
    y += row * ld_y;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < d; i += blockDim.x) {
        const float value = to_float(x[i]);
        squares += value * value;
    }
    const float r = reciprocal_root(row_sum<false>(squares), d, eps);
    if (threadIdx.x == 0) rstd[row] = r;
    for (int i = threadIdx.x; i < d; i += blockDim.x) {
        y[i] = to_bf16(to_float(to_bf16(to_float(x[i]) * r)) * to_float(w[i]));
    }
}

KERNEL(rms_norm_backward_any, 256)(RMS_NORM_BACKWARD) {
    const int64_t row = blockIdx.x;
    dy += row * ld_dy;
    x += row * ld_x;
    dx += row * ld_dx;
    const float r = rstd[row];
    float dot = 0.0f;
    for (int i = threadIdx.x; i < d; i += blockDim.x) dot += to_float(dy[i]) * to_float(w[i]) * to_float(x[i]);
    const float mean = row_sum<false>(dot) * r / static_cast<float>(d);
    for (int i = threadIdx.x; i < d; i += blockDim.x) {
        const float factor = to_float(w[i]), normal = to_float(x[i]) * r;
        dx[i] = to_bf16(to_float(dx[i]) + r * (to_float(dy[i]) * factor - normal * mean));
        if (y != nullptr) y[row * ld_y + i] = to_bf16(to_float(to_bf16(normal)) * factor);
    }
}
