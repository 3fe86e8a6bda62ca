// Random weights, made where they are used.
//
//   out[t][c] = bf16(scale · (b0 + b1 + b2 + b3 - 510)),  scale = std / sqrt(21845)
//
// b0..b3 are the bytes of word i % 4 of Philox 4x32-10 at the counter (i / 4, low and high half, tensor, 0xf111) under the
// seed as key, i = t · cols + c. The sum of four fair bytes is symmetric about 510 and has the variance
// 4 (256² - 1) / 12 = 21845: near enough to a normal for what a product of such weights does, exact in integers, and so
// the same on every device up to the one rounding of the product with the scale and the one to bf16.
//
// out [rows, cols] bf16 with a leading dimension. Bytes per value: 2.
#include "philox.cuh"
#include "rows.cuh"

constexpr uint32_t FILL_PURPOSE = 0xf111;

#define FILL                                                                                                   \
    uint32_t key0, uint32_t key1, uint32_t tensor, float scale, bf16 *__restrict__ out, int64_t ld_out,        \
        int rows, int cols, int lanes, int chunks

DEVICE float spread(uint32_t word, float scale) {
    const int sum = static_cast<int>((word & 255u) + (word >> 8 & 255u) + (word >> 16 & 255u) + (word >> 24));
    return static_cast<float>(sum - 510) * scale;
}

template <int WIDTH>
DEVICE void fill_random(FILL) {
    const Place at = place<WIDTH>(lanes, chunks, 1);
    if (at.row >= rows || at.col >= cols) return;
    const uint64_t first = static_cast<uint64_t>(at.row) * static_cast<uint64_t>(cols) + static_cast<uint64_t>(at.col);
    float v[WIDTH];
    uint4 counter;
    counter.z = tensor;
    counter.w = FILL_PURPOSE;
    if constexpr (WIDTH == 1) {
        counter.x = static_cast<uint32_t>(first / 4);
        counter.y = static_cast<uint32_t>(first / 4 >> 32);
        const uint4 words = philox(counter, key0, key1);
        const int which = static_cast<int>(first % 4);
        v[0] = spread(which == 0 ? words.x : which == 1 ? words.y : which == 2 ? words.z : words.w, scale);
    } else {
        // Rows are multiples of eight values long, so that `first` is one of four.
#pragma unroll
        for (int i = 0; i < WIDTH; i += 4) {
            const uint64_t block = (first + i) / 4;
            counter.x = static_cast<uint32_t>(block);
            counter.y = static_cast<uint32_t>(block >> 32);
            const uint4 words = philox(counter, key0, key1);
            v[i] = spread(words.x, scale);
            v[i + 1] = spread(words.y, scale);
            v[i + 2] = spread(words.z, scale);
            v[i + 3] = spread(words.w, scale);
        }
    }
    store_packed(out + at.row * ld_out + at.col, pack(v));
}

#define PASS_FILL key0, key1, tensor, scale, out, ld_out, rows, cols, lanes, chunks

KERNEL(fill_random_8, 256)(FILL) { fill_random<8>(PASS_FILL); }
KERNEL(fill_random_1, 256)(FILL) { fill_random<1>(PASS_FILL); }
