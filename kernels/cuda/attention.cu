// Causal attention over packed documents, forward and backward, flash style: no score leaves the chip.
//
// A document is a run of key rows and a run of query rows with ascending positions p; the query at p sees the keys at
// positions max(0, p - window + 1) ..= p of its document. Query head h reads key/value head h / group.
// Forward, with s = q kᵀ / √head_dim over the visible keys:
//   o = softmax(s) v, lse = ln Σ e^s.
// The softmax runs in powers of two, with scores times log2 e, over tiles of keys; P is rounded to bf16 for its product.
// Backward, with P = e^(s - lse) and D = Σ_j o_j do_j, all products recomputed twice:
//   dv = Pᵀ do, dS = P ∘ (do vᵀ - D), dq = dS k / √head_dim, dk = dSᵀ q / √head_dim; P and dS rounded to bf16.
//
// Shapes: q, o, do, dq [queries, heads · head_dim], k, v, dk, dv [keys, kv_heads · head_dim] bf16, rows on 16 bytes and
// less than 2^24 elements apart; lse [queries, heads] f32; stats [heads, queries] pairs of f32.
// Work lists (int32, made by the host, longest first): query tiles {q0, q1, k0} of up to 128 query rows and the
// document's first key row; key tiles {k0, k1, base, q0, q1} of up to 128 key rows, the document's first key row, the
// query rows from the first that sees a key of the tile to the document's end. Empty tiles (q0 >= q1, k0 >= k1) are
// skipped, so that a grid may be longer than its list.
// Saved from forward to backward: q, k, v, o, lse. Bytes moved: q, o, k, v once (K and V again per query tile, from L2).
//
// attention_forward.cuh and attention_backward.cuh have the kernels, attention_*.cu their instances: head sizes 64, 96
// and 128, and for any other multiple of 8 the next of 32, 64, 96, 128, 192, 256, filled up with zeros.
#include "attention.cuh"

// stats[h, i] = (lse[i, h] · log2 e, D). `lanes` threads (a power of two, head_dim / 8 or more, at most 32) add up the
// products of one query and head. Bytes: o and do once, 12 more per query and head.
KERNEL(attention_stats, 256)
(const bf16* o, int64_t o_ld, const bf16* d_o, int64_t d_o_ld, const float* lse, float* stats, int queries, int heads,
 int head_dim, int lanes) {
    const int64_t item = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / lanes;
    const int column = threadIdx.x % lanes * 8;
    const int64_t query = item / heads;
    const int head = static_cast<int>(item % heads);
    const bool valid = query < queries;
    float sum = 0.0f;
    if (valid && column < head_dim) {
        float a[8], b[8];
        load8(o + query * o_ld + head * head_dim + column, a);
        load8(d_o + query * d_o_ld + head * head_dim + column, b);
#pragma unroll
        for (int i = 0; i < 8; i++) sum = fmaf(a[i], b[i], sum);
    }
    for (int offset = lanes / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(FULL_MASK, sum, offset);
    if (valid && column == 0) {
        reinterpret_cast<float2*>(stats)[head * static_cast<int64_t>(queries) + query] =
            make_float2(lse[query * heads + head] * LOG2_E, sum);
    }
}
