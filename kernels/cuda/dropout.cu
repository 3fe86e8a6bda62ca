// Dropout with a mask that depends on nothing but names.
//
//   out[t][c] = m[t][c] · (u < p ? 0 : keep),  keep = 1 / (1 - p)
//
// u is 24 bits of word c % 4 of Philox 4x32-10 (Salmon et al., 2011) at the counter (c / 4, site, names[t][0],
// names[t][1]) under the key (key0, key1) of seed and step: a recomputed layer, another micro-batch size or a resumed
// run sees the same mask, and the CPU backend draws the same bits. The product is a true one, rounded once, so that
// NaN and infinities are not hidden where the mask is 0.
//
// m, out [rows, cols] bf16 with leading dimensions; names [rows, 2] u32. Nothing is saved: the mask is drawn again.
//
// Bytes per value: 4.
#include "philox.cuh"
#include "rows.cuh"

#define DROPOUT                                                                                                \
    const bf16 *__restrict__ m, int64_t ld_m, const uint32_t *__restrict__ names, uint32_t key0, uint32_t key1, \
        uint32_t site, float p, float keep, bf16 *__restrict__ out, int64_t ld_out, int rows, int cols,        \
        int lanes, int chunks

DEVICE float factor(uint32_t word, float p, float keep) {
    return static_cast<float>(word >> 8) * (1.0f / 16777216.0f) < p ? 0.0f : keep;
}

template <int WIDTH>
DEVICE void dropout(DROPOUT) {
    const Place at = place<WIDTH>(lanes, chunks, 1);
    if (at.row >= rows || at.col >= cols) return;
    Packed<WIDTH> packed;
    load_packed(m + at.row * ld_m + at.col, packed);
    float v[WIDTH];
    unpack(packed, v);
    uint4 counter;
    counter.y = site;
    counter.z = names[at.row * 2];
    counter.w = names[at.row * 2 + 1];
    if constexpr (WIDTH == 1) {
        counter.x = at.col / 4;
        const uint4 words = philox(counter, key0, key1);
        const int which = at.col % 4;
        v[0] *= factor(which == 0 ? words.x : which == 1 ? words.y : which == 2 ? words.z : words.w, p, keep);
    } else {
#pragma unroll
        for (int i = 0; i < WIDTH; i += 4) {
            counter.x = (at.col + i) / 4;
            const uint4 words = philox(counter, key0, key1);
            v[i] *= factor(words.x, p, keep);
            v[i + 1] *= factor(words.y, p, keep);
            v[i + 2] *= factor(words.z, p, keep);
            v[i + 3] *= factor(words.w, p, keep);
        }
    }
    store_packed(out + at.row * ld_out + at.col, pack(v));
}

#define PASS_DROPOUT m, ld_m, names, key0, key1, site, p, keep, out, ld_out, rows, cols, lanes, chunks

KERNEL(dropout_8, 256)(DROPOUT) { dropout<8>(PASS_DROPOUT); }
KERNEL(dropout_1, 256)(DROPOUT) { dropout<1>(PASS_DROPOUT); }
