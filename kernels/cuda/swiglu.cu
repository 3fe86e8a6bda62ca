// SwiGLU, forward and backward, over the fused buffer [gate | up].
//
//   σ = 1 / (1 + e^-gate),  h = bf16(gate σ) up                                (Hugging Face's order: two roundings)
//   dgate = dh up σ (1 + gate (1 - σ)),  dup = dh gate σ                       (in place; h is written again)
//
// gate_up [rows, 2 f] bf16, gate first; h, dh [rows, f] bf16; all with leading dimensions. Nothing is saved beside
// gate_up: h, which the gradient of a LoRA factor needs, is made again by the backward. Intermediates are f32.
//
// What IEEE gives at the ends stays: a gate of -inf gives -inf · 0 = NaN, +inf gives +inf times up; large finite gates
// give gate and -0 without overflow on the way.
//
// Bytes per row: 6 f forward, 12 f backward.
#include "rows.cuh"

#define SWIGLU                                                                                                 \
    const bf16 *__restrict__ gate_up, int64_t ld_gate_up, bf16 *__restrict__ h, int64_t ld_h, int rows, int f, \
        int lanes, int chunks

#define SWIGLU_BACKWARD                                                                                        \
    const bf16 *__restrict__ dh, int64_t ld_dh, bf16 *__restrict__ gate_up, int64_t ld_gate_up,                \
        bf16 *__restrict__ h, int64_t ld_h, int rows, int f, int lanes, int chunks

// Rows of a thread of the forward, whose instructions weigh most against its bytes.
constexpr int SWIGLU_REPEAT = 2;

// `upper` is σ(x) and `lower` is σ(-x) = 1 - σ(x), neither from a difference. The exponent is never positive, so that
// nothing overflows and the divisor lies in [1, 2], where the quick functions are good to some units of 2^-23 (2^-17 for
// arguments near -88): far below a bf16's 2^-9.
DEVICE void sigmoid(float x, float& upper, float& lower) {
    const float e = __expf(-fabsf(x));
    const float large = __fdividef(1.0f, 1.0f + e), small = e * large;
    upper = x < 0.0f ? small : large;
    lower = x < 0.0f ? large : small;
}

template <int WIDTH>
DEVICE void swiglu(SWIGLU) {
    const Place at = place<WIDTH>(lanes, chunks, SWIGLU_REPEAT);
    if (at.col >= f) return;
    Packed<WIDTH> gates[SWIGLU_REPEAT], ups[SWIGLU_REPEAT];
#pragma unroll
    for (int j = 0; j < SWIGLU_REPEAT; j++) {
        const int64_t row = at.row + j * at.step;
        if (row < rows) {
            load_packed(gate_up + row * ld_gate_up + at.col, gates[j]);
            load_packed(gate_up + row * ld_gate_up + f + at.col, ups[j]);
        }
    }
#pragma unroll
    for (int j = 0; j < SWIGLU_REPEAT; j++) {
        const int64_t row = at.row + j * at.step;
        if (row >= rows) return;
        float gate[WIDTH], up[WIDTH];
        unpack(gates[j], gate);
        unpack(ups[j], up);
#pragma unroll
        for (int i = 0; i < WIDTH; i++) {
            float upper, lower;
            sigmoid(gate[i], upper, lower);
            gate[i] *= upper;
        }
        round_all(gate);
#pragma unroll
        for (int i = 0; i < WIDTH; i++) gate[i] *= up[i];
        store_packed(h + row * ld_h + at.col, pack(gate));
    }
}

template <int WIDTH>
DEVICE void swiglu_backward(SWIGLU_BACKWARD) {
    const Place at = place<WIDTH>(lanes, chunks, 1);
    if (at.row >= rows || at.col >= f) return;
    bf16* gate_at = gate_up + at.row * ld_gate_up + at.col;
    Packed<WIDTH> gates, ups, givens;
    load_packed(gate_at, gates);
    load_packed(gate_at + f, ups);
    load_packed(dh + at.row * ld_dh + at.col, givens);
    float gate[WIDTH], up[WIDTH], given[WIDTH], made[WIDTH];
    unpack(gates, gate);
    unpack(ups, up);
    unpack(givens, given);
#pragma unroll
    for (int i = 0; i < WIDTH; i++) {
        float upper, lower;
        sigmoid(gate[i], upper, lower);
        made[i] = gate[i] * upper;
        gate[i] = given[i] * up[i] * upper * (1.0f + gate[i] * lower);
        given[i] *= made[i];
    }
    round_all(made);
#pragma unroll
    for (int i = 0; i < WIDTH; i++) made[i] *= up[i];
    store_packed(gate_at, pack(gate));
    store_packed(gate_at + f, pack(given));
    store_packed(h + at.row * ld_h + at.col, pack(made));
}

#define PASS_SWIGLU gate_up, ld_gate_up, h, ld_h, rows, f, lanes, chunks
#define PASS_SWIGLU_BACKWARD dh, ld_dh, gate_up, ld_gate_up, h, ld_h, rows, f, lanes, chunks

KERNEL(swiglu_8, 256)(SWIGLU) { swiglu<8>(PASS_SWIGLU); }
KERNEL(swiglu_1, 256)(SWIGLU) { swiglu<1>(PASS_SWIGLU); }
KERNEL(swiglu_backward_8, 256)(SWIGLU_BACKWARD) { swiglu_backward<8>(PASS_SWIGLU_BACKWARD); }
KERNEL(swiglu_backward_1, 256)(SWIGLU_BACKWARD) { swiglu_backward<1>(PASS_SWIGLU_BACKWARD); }
