// Rotary position embedding of every head of every row, in place; the backward is the same with `sign` -1.
//
//   (a, b) = (x[i], x[i + half])  becomes  (a cos - b sin, b cos + a sin),  half = head_dim / 2
//
// x [rows, heads * head_dim] bf16 with a leading dimension: q and k lie side by side in the fused buffer, so one launch
// turns both and leaves v alone. positions [rows] int32; cosines and sines [table, half] f32, row p for position p.
// Nothing is saved. A row whose position has no row in the table becomes NaN.
//
// Bytes per row: 4 heads head_dim (the table's rows come from cache: a thread turns the same columns of four heads).
#include "rows.cuh"

#define ROPE                                                                                                   \
    bf16 *__restrict__ x, int64_t ld, const int *__restrict__ positions, const float *__restrict__ cosines,    \
        const float *__restrict__ sines, int table, int rows, int heads, int half, float sign

// Heads that one thread turns.
constexpr int ROPE_HEADS = 4;

template <int WIDTH>
DEVICE void rope(ROPE) {
    const int pieces = half / WIDTH, groups = (heads + ROPE_HEADS - 1) / ROPE_HEADS, items = pieces * groups;
    const int lanes = items < static_cast<int>(blockDim.x) ? items : blockDim.x;
    const int per_block = blockDim.x / lanes, slot = threadIdx.x / lanes;
    const int64_t row = static_cast<int64_t>(blockIdx.x) * per_block + slot;
    if (slot >= per_block || row >= rows) return;
    x += row * ld;
    const int position = positions[row];
    const bool known = position >= 0 && position < table;

    for (int item = threadIdx.x % lanes; item < items; item += lanes) {
        const int column = item % pieces * WIDTH, group = item / pieces;
        Packed<WIDTH> low[ROPE_HEADS], high[ROPE_HEADS];
#pragma unroll
        for (int j = 0; j < ROPE_HEADS; j++) {
            const int head = group + j * groups;
            if (head < heads) {
                bf16* at = x + static_cast<int64_t>(head) * 2 * half + column;
                load_packed(at, low[j]);
                load_packed(at + half, high[j]);
            }
        }
        float cosine[WIDTH], sine[WIDTH];
        if (known) {
            load_floats(cosines + static_cast<int64_t>(position) * half + column, cosine);
            load_floats(sines + static_cast<int64_t>(position) * half + column, sine);
        }
#pragma unroll
        for (int i = 0; i < WIDTH; i++) {
            cosine[i] = known ? cosine[i] : not_a_number();
            sine[i] = known ? sine[i] * sign : not_a_number();
        }
#pragma unroll
        for (int j = 0; j < ROPE_HEADS; j++) {
            const int head = group + j * groups;
            if (head < heads) {
                float a[WIDTH], b[WIDTH], turned_a[WIDTH], turned_b[WIDTH];
                unpack(low[j], a);
                unpack(high[j], b);
#pragma unroll
                for (int i = 0; i < WIDTH; i++) {
                    turned_a[i] = a[i] * cosine[i] - b[i] * sine[i];
                    turned_b[i] = b[i] * cosine[i] + a[i] * sine[i];
                }
                bf16* at = x + static_cast<int64_t>(head) * 2 * half + column;
                store_packed(at, pack(turned_a));
                store_packed(at + half, pack(turned_b));
            }
        }
    }
}

#define PASS_ROPE x, ld, positions, cosines, sines, table, rows, heads, half, sign

KERNEL(rope_8, 256)(ROPE) { rope<8>(PASS_ROPE); }
KERNEL(rope_1, 256)(ROPE) { rope<1>(PASS_ROPE); }
