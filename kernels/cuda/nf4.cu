// NF4 to bf16: a frozen weight of QLoRA, made again before each product with it.
//
//   scale(b)         = absmax[b]                                             plain
//                    = map[codes[b]] nested_absmax[b / 256] + offset         double quantisation
//   out[row, column] = bf16(fraction[code(i)] scale(i / 64)),  i = row cols + column
//
// packed [rows cols / 2] bytes, two codes each, the first in the high half; blocks of 64 values go on across the ends of
// rows. absmax f32 or codes u8 [rows cols / 64]; map [256], nested_absmax [rows cols / 64 / 256] f32. out [rows, cols]
// bf16 with a leading dimension: the top left of an augmented weight. Bit for bit what bitsandbytes computes, so nothing
// is fused: one rounding each for the product with map, the sum, the product with the fraction, and bf16.
//
// Bytes per value: 0.5 + 4 / 64 (or 1 / 64) in, 2 out.
//
// A thread takes four words of eight codes, as many words apart as the block has threads: 16 bytes of codes in flight per
// thread, and whatever a warp loads or stores at once is one stretch of memory. The sixteen fractions lie in sixteen
// banks of shared memory, so that no two lanes wait for each other.
#include "common.cuh"

constexpr int NF4_THREADS = 256;
constexpr int NF4_WORDS = 4;
constexpr int NF4_BLOCK = 64;
constexpr int NF4_NESTED_BLOCK = 256;

__constant__ float NF4_FRACTIONS[16] = {
    -1.0f,          -0.69619280f, -0.52507305f, -0.39491750f, -0.28444138f, -0.18477343f, -0.091050036f, 0.0f,
    0.079580300f,   0.16093020f,  0.24611230f,  0.33791524f,  0.44070983f,  0.56261700f,  0.72295684f,   1.0f,
};

// Two roundings in the double case, as in the original.
template <bool DOUBLE>
DEVICE float scale_of(const float* map, int code, float absmax, float offset) {
    return DOUBLE ? __fadd_rn(__fmul_rn(map[code], absmax), offset) : absmax;
}

// Fills the tables in shared memory. A barrier has to follow.
template <bool DOUBLE>
DEVICE void fill_tables(float* fractions, float* own_map, const float* map) {
    if (threadIdx.x < 16) fractions[threadIdx.x] = NF4_FRACTIONS[threadIdx.x];
    if (DOUBLE) {
        for (int i = threadIdx.x; i < 256; i += blockDim.x) own_map[i] = map[i];
    }
}

#define NF4_DEQUANTIZE                                                                                             \
    const uint8_t *__restrict__ packed, const float *__restrict__ absmax, const uint8_t *__restrict__ codes,       \
        const float *__restrict__ map, float offset, bf16 *__restrict__ out, int64_t ld, int cols, int64_t values

// Rows of whole words, and 16-byte aligned in `out`.
template <bool DOUBLE>
DEVICE void nf4_dequantize(NF4_DEQUANTIZE) {
    float* fractions = shared_memory<float>();
    float* own_map = fractions + 16;
    const uint32_t* words = reinterpret_cast<const uint32_t*>(packed);
    const unsigned count = static_cast<unsigned>(values / 8), per_row = static_cast<unsigned>(cols) / 8;
    const unsigned first = blockIdx.x * (NF4_THREADS * NF4_WORDS) + threadIdx.x;

    // Beyond the end, the last word again: a branch would make each load wait for the one before.
    uint32_t word[NF4_WORDS];
    float scale[NF4_WORDS];
    int code[NF4_WORDS];
#pragma unroll
    for (int w = 0; w < NF4_WORDS; w++) {
        const unsigned at = min(first + w * NF4_THREADS, count - 1), block = at / (NF4_BLOCK / 8);
        CHECK_ALIGNED(words + at, 4);
        word[w] = __ldcs(words + at);
        code[w] = DOUBLE ? codes[block] : 0;
        scale[w] = absmax[DOUBLE ? block / NF4_NESTED_BLOCK : block];
    }
    fill_tables<DOUBLE>(fractions, own_map, map);
    __syncthreads();
#pragma unroll
    for (int w = 0; w < NF4_WORDS; w++) scale[w] = scale_of<DOUBLE>(own_map, code[w], scale[w], offset);

    // From word to word without dividing again.
    const unsigned step_rows = NF4_THREADS / per_row, step_columns = NF4_THREADS % per_row;
    unsigned row = first / per_row, column = first % per_row;
#pragma unroll
    for (int w = 0; w < NF4_WORDS; w++) {
        if (first + w * NF4_THREADS < count) {
            float v[8];
#pragma unroll
            for (int i = 0; i < 8; i++) {
                // Byte i / 2, the high half first.
                v[i] = __fmul_rn(fractions[word[w] >> (i / 2 * 8 + (i % 2 == 0 ? 4 : 0)) & 15], scale[w]);
            }
            bf16* to = out + row * ld + column * 8;
            CHECK_ALIGNED(to, 16);
            uint4 eight;
            eight.x = pack_bf16(v[0], v[1]);
            eight.y = pack_bf16(v[2], v[3]);
            eight.z = pack_bf16(v[4], v[5]);
            eight.w = pack_bf16(v[6], v[7]);
            __stcg(reinterpret_cast<uint4*>(to), eight);
        }
        row += step_rows;
        column += step_columns;
        if (column >= per_row) {
            column -= per_row;
            row++;
        }
    }
}

// One value per thread, for every shape.
template <bool DOUBLE>
DEVICE void nf4_dequantize_any(NF4_DEQUANTIZE) {
    float* fractions = shared_memory<float>();
    float* own_map = fractions + 16;
    fill_tables<DOUBLE>(fractions, own_map, map);
    __syncthreads();
    const int64_t i = static_cast<int64_t>(blockIdx.x) * NF4_THREADS + threadIdx.x;
    if (i >= values) return;
    const int64_t block = i / NF4_BLOCK;
    const float magnitude = absmax[DOUBLE ? block / NF4_NESTED_BLOCK : block];
    const float scale = scale_of<DOUBLE>(own_map, DOUBLE ? codes[block] : 0, magnitude, offset);
    const int byte = packed[i / 2];
    out[i / cols * ld + i % cols] = to_bf16(__fmul_rn(fractions[i % 2 == 0 ? byte >> 4 : byte & 15], scale));
}

#define PASS_NF4 packed, absmax, codes, map, offset, out, ld, cols, values

KERNEL(nf4_dequantize_plain, NF4_THREADS)(NF4_DEQUANTIZE) { nf4_dequantize<false>(PASS_NF4); }
KERNEL(nf4_dequantize_double, NF4_THREADS)(NF4_DEQUANTIZE) { nf4_dequantize<true>(PASS_NF4); }
KERNEL(nf4_dequantize_plain_any, NF4_THREADS)(NF4_DEQUANTIZE) { nf4_dequantize_any<false>(PASS_NF4); }
KERNEL(nf4_dequantize_double_any, NF4_THREADS)(NF4_DEQUANTIZE) { nf4_dequantize_any<true>(PASS_NF4); }
