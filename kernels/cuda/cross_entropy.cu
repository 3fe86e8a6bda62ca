// Cross-entropy of rows of logits, and their gradient in place.
//
//   m = max z,  l = Σ e^(z - m),  loss = (m - z_y) + ln l
//   z  = (e^(z - m) / l - onehot(y)) weight                            (the gradient; one rounding to bf16)
//
// logits z [rows, vocab] bf16 with a leading dimension; targets y [rows] uint32; losses [rows] f32. Nothing is saved. A
// NaN or +inf in a row makes its loss and its gradient NaN, and so does a target that is not below `vocab`.
//
// Bytes per row: 2 vocab for the loss alone; 4 vocab with the gradient, of which what does not fit shared memory is
// read a second time, mostly from L2.
//
// A block holds a row and reads it once: every thread keeps a maximum and a sum of its own, rescaled when the maximum
// grows, and leaves what it read in shared memory for itself. `pieces` of eight values come first, the first `kept` of
// them kept; what is left of the row, all of it where it is not aligned, goes one value at a time.
#include "rows.cuh"

#define CROSS_ENTROPY                                                                                          \
    bf16 *logits, int64_t ld, const uint32_t *__restrict__ targets, float weight, float *__restrict__ losses,  \
        int vocab, int pieces, int kept

// Pieces that a thread has under way.
constexpr int IN_FLIGHT = 4;
// Bytes of shared memory before the row: what a sum over a block takes.
constexpr int ROW_AT = 128;
// Below every bf16, and finite: -inf - LOWEST is no NaN.
constexpr float LOWEST = -3.402823466e38f;
constexpr uint16_t MINUS_INFINITE_BITS = 0xff80;

// e^v of a v that is not positive, good to some units of 2^-22 where e^v counts beside 1; zero where it is subnormal.
DEVICE float exp_below(float v) {
    v *= 1.44269504f;
#ifdef TUNESMITH_EMULATOR
    return exp2f(v);
#else
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(v));
    return out;
#endif
}

// Maximum and sum of what one thread has seen. The maximum drops NaN, as fmaxf does: the sum has it.
struct Seen {
    float max, sum;
};

template <int N>
DEVICE void see(Seen& seen, const float (&v)[N]) {
    float top = v[0];
#pragma unroll
    for (int i = 1; i < N; i++) top = fmaxf(top, v[i]);
    if (top > seen.max) {
        seen.sum *= exp_below(seen.max - top);
        seen.max = top;
    }
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < N; i++) sum += exp_below(v[i] - seen.max);
    seen.sum += sum;
}

template <int N>
DEVICE void differentiate(float (&v)[N], float max, float factor, unsigned hit, float weight) {
#pragma unroll
    for (int i = 0; i < N; i++) v[i] = exp_below(v[i] - max) * factor;
    if (hit < N) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            if (hit == i) v[i] -= weight;
        }
    }
}

template <bool GRADIENT>
DEVICE void cross_entropy(CROSS_ENTROPY) {
    bf16* row = logits + blockIdx.x * ld;
    float* scratch = shared_memory<float>();
    uint4* shared_row = reinterpret_cast<uint4*>(shared_memory<unsigned char>() + ROW_AT);
    const uint32_t target = targets[blockIdx.x];
    const bool known = target < static_cast<uint32_t>(vocab);
    // Before anything of the row is written: the sums below have barriers.
    const float hit = known ? to_float(row[target]) : not_a_number();

    Seen seen = {LOWEST, 0.0f};
    for (int first = threadIdx.x; first < pieces; first += IN_FLIGHT * blockDim.x) {
        Packed<8> values[IN_FLIGHT];
#pragma unroll
        for (int j = 0; j < IN_FLIGHT; j++) {
            const int64_t at = first + j * blockDim.x;
            if (at < pieces) {
                load_packed(row + at * 8, values[j]);
            } else {
                splat(MINUS_INFINITE_BITS, values[j]);
            }
        }
#pragma unroll
        for (int j = 0; j < IN_FLIGHT; j++) {
            const int at = first + j * blockDim.x;
            float v[8];
            unpack(values[j], v);
            see(seen, v);
            if (GRADIENT && at < kept) shared_row[at] = values[j].v;
        }
    }
    for (int at = pieces * 8 + threadIdx.x; at < vocab; at += blockDim.x) {
        const float v[1] = {to_float(row[at])};
        see(seen, v);
    }

    const float max = block_max(seen.max, scratch);
    const float sum = block_sum(seen.sum * exp_below(seen.max - max), scratch);
    if (threadIdx.x == 0) losses[blockIdx.x] = (max - hit) + logf(sum);
    if (!GRADIENT) return;

    const float factor = known ? weight / sum : not_a_number();
    for (int first = threadIdx.x; first < pieces; first += IN_FLIGHT * blockDim.x) {
        Packed<8> values[IN_FLIGHT];
#pragma unroll
        for (int j = 0; j < IN_FLIGHT; j++) {
            const int64_t at = first + j * blockDim.x;
            if (at < kept) {
                values[j].v = shared_row[at];
            } else if (at < pieces) {
                load_packed(row + at * 8, values[j]);
            }
        }
#pragma unroll
        for (int j = 0; j < IN_FLIGHT; j++) {
            const int64_t at = first + j * blockDim.x;
            if (at < pieces) {
                float v[8];
                unpack(values[j], v);
                differentiate(v, max, factor, target - static_cast<unsigned>(at) * 8, weight);
                store_packed(row + at * 8, pack(v));
            }
        }
    }
    for (int at = pieces * 8 + threadIdx.x; at < vocab; at += blockDim.x) {
        float v[1] = {to_float(row[at])};
        differentiate(v, max, factor, target - at, weight);
        row[at] = to_bf16(v[0]);
    }
}

#define PASS_CROSS_ENTROPY logits, ld, targets, weight, losses, vocab, pieces, kept

// Leaves the logits as they are.
KERNEL(cross_entropy_loss, 1024)(CROSS_ENTROPY) { cross_entropy<false>(PASS_CROSS_ENTROPY); }
KERNEL(cross_entropy_gradient, 1024)(CROSS_ENTROPY) { cross_entropy<true>(PASS_CROSS_ENTROPY); }
