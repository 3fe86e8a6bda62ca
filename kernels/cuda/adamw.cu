// AdamW (PyTorch's) over all trained parameters at once, and the bf16 copies that the products read.
//
//   g' = g · scale
//   m  = m + (g' - m) (1 - β1)
//   v  = v β2 + g'² (1 - β2)
//   p  = p · decay - step_size · m / (sqrt(v) / root + eps)
//
//   decay = 1 - lr · wd,  step_size = lr / (1 - β1^t),  root = sqrt(1 - β2^t)      (by the host, in f64)
//
// p, g, m, v [n] f32. `norm` is null or what norm.cu puts out: its factor goes into scale, and where the norm is not
// finite nothing is written at all, without the host having to know.
//
// A segment of p is a matrix [rows, cols] without gaps that is copied, times a factor, to bf16 with a leading dimension:
// to[r ld + c] = bf16(factor · p[start + r cols + c]). Segments are sorted and do not overlap; a block finds its first
// one in `first`. What lies in no segment has no copy.
//
// Bytes per value: 28, and 2 for the copy. A thread takes four values, so that the six blocks of a multiprocessor have
// 96 KiB on their way.
#include "common.cuh"

// A segment as the host writes it (gpu/adamw.rs).
struct alignas(16) Segment {
    int64_t start;
    int64_t length;
    bf16* to;
    int64_t ld;
    uint32_t cols;
    float factor;
    // Whether four values from a multiple of four on are neighbours at a multiple of 8 bytes.
    uint32_t whole;
    uint32_t unused;
};

constexpr int WIDTH = 4;
constexpr int CHUNK = 256 * WIDTH;

DEVICE bf16* place_of(const Segment& s, int64_t i) {
    const uint32_t offset = static_cast<uint32_t>(i - s.start), row = offset / s.cols;
    return s.to + row * s.ld + (offset - row * s.cols);
}

// Copies what of the values from i on lies in segments, of which `s` is the first that may have them. None goes on
// beyond n.
DEVICE void copy(const float (&p)[WIDTH], int64_t i, uint32_t s, const Segment* __restrict__ segments,
                 uint32_t count) {
    while (s < count && i >= segments[s].start + segments[s].length) s++;
    if (s >= count) return;
    Segment segment = segments[s];
    if (segment.whole != 0) {
        // A quad that starts before such a segment has no value in it.
        if (i < segment.start) return;
        uint2 out;
        out.x = pack_bf16(segment.factor * p[0], segment.factor * p[1]);
        out.y = pack_bf16(segment.factor * p[2], segment.factor * p[3]);
        bf16* to = place_of(segment, i);
        CHECK_ALIGNED(to, 8);
        __stcg(reinterpret_cast<uint2*>(to), out);
        return;
    }
#pragma unroll
    for (int j = 0; j < WIDTH; j++) {
        while (i + j >= segment.start + segment.length) {
            if (++s >= count) return;
            segment = segments[s];
        }
        if (i + j >= segment.start) *place_of(segment, i + j) = to_bf16(segment.factor * p[j]);
    }
}

DEVICE void load(const float* from, int64_t i, int64_t n, float (&to)[WIDTH]) {
    if (i + WIDTH <= n) {
        CHECK_ALIGNED(from + i, 16);
        const float4 v = *reinterpret_cast<const float4*>(from + i);
        to[0] = v.x;
        to[1] = v.y;
        to[2] = v.z;
        to[3] = v.w;
    } else {
#pragma unroll
        for (int j = 0; j < WIDTH; j++) to[j] = i + j < n ? from[i + j] : 0.0f;
    }
}

DEVICE void store(float* to, int64_t i, int64_t n, const float (&from)[WIDTH]) {
    if (i + WIDTH <= n) {
        __stcg(reinterpret_cast<float4*>(to + i), make_float4(from[0], from[1], from[2], from[3]));
    } else {
#pragma unroll
        for (int j = 0; j < WIDTH; j++) {
            if (i + j < n) to[i + j] = from[j];
        }
    }
}

#define ADAMW                                                                                                  \
    float *__restrict__ p, const float *__restrict__ g, float *__restrict__ m, float *__restrict__ v, int64_t n, \
        float decay, float one_b1, float b2, float one_b2, float step_size, float root, float eps, float scale, \
        const float *__restrict__ norm
#define COPIES const uint32_t *__restrict__ first, const Segment *__restrict__ segments, uint32_t count

template <bool COPY>
DEVICE void adamw(ADAMW, COPIES) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * CHUNK + threadIdx.x * WIDTH;
    if (i >= n) return;
    // Early, so that its latency hides behind the values.
    const uint32_t segment = COPY ? first[blockIdx.x] : 0;
    float value[WIDTH], gradient[WIDTH], mean[WIDTH], square[WIDTH];
    load(p, i, n, value);
    load(g, i, n, gradient);
    load(m, i, n, mean);
    load(v, i, n, square);
    if (norm != nullptr) {
        if (norm[2] != 1.0f) return;
        scale *= norm[1];
    }
#pragma unroll
    for (int j = 0; j < WIDTH; j++) {
        const float scaled = gradient[j] * scale;
        mean[j] += (scaled - mean[j]) * one_b1;
        square[j] = square[j] * b2 + scaled * scaled * one_b2;
        value[j] = value[j] * decay - step_size * (mean[j] / (sqrtf(square[j]) / root + eps));
    }
    store(p, i, n, value);
    store(m, i, n, mean);
    store(v, i, n, square);
    if (COPY) copy(value, i, segment, segments, count);
}

#define PASS_ADAMW p, g, m, v, n, decay, one_b1, b2, one_b2, step_size, root, eps, scale, norm

KERNEL(adamw_plain, 256)(ADAMW) { adamw<false>(PASS_ADAMW, nullptr, nullptr, 0); }
KERNEL(adamw_copies, 256)(ADAMW, COPIES) { adamw<true>(PASS_ADAMW, first, segments, count); }
