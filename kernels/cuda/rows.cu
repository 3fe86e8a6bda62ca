// Moving rows: gather, scatter, copy, add, fill, and casts between bf16 and f32.
//
//   gather    out[t] = m[index[t]]                           (embedding, and rows with a label)
//   scatter   out[t] = m[index[t]], zeros where index[t] is -1: the inverse map of out[rows[i]] = m[i]
//   copy      out = m          add   out += m          fill  out = value
//   narrow    out = bf16(alpha m), m f32               widen out = m, out f32
//
// All matrices [rows, cols] with leading dimensions, bf16 unless said; index [rows], u32 or int32. Nothing is saved and
// copies are exact. An index beyond m gives a row of NaN.
//
// Bytes per value: 4 gather, scatter and copy, 6 add, casts; 2 fill. Four rows per thread keep enough loads in flight.
#include "rows.cuh"

constexpr int ROWS_REPEAT = 4;

#define TILED int rows, int cols, int lanes, int chunks

// Runs `load(row, col)` for all of a thread's rows and then `store(row, col, loaded)`.
template <int WIDTH, class Load, class Store>
DEVICE void rows_sweep(TILED, Load load, Store store) {
    const Place at = place<WIDTH>(lanes, chunks, ROWS_REPEAT);
    if (at.col >= cols) return;
    decltype(load(at.row, at.col)) kept[ROWS_REPEAT];
#pragma unroll
    for (int j = 0; j < ROWS_REPEAT; j++) {
        const int64_t row = at.row + j * at.step;
        if (row < rows) kept[j] = load(row, at.col);
    }
#pragma unroll
    for (int j = 0; j < ROWS_REPEAT; j++) {
        const int64_t row = at.row + j * at.step;
        if (row < rows) store(row, at.col, kept[j]);
    }
}

template <int WIDTH>
struct RowsFloats {
    float v[WIDTH];
};

#define ROWS_GATHER                                                                                            \
    const bf16 *__restrict__ m, int64_t ld_m, unsigned m_rows, const uint32_t *__restrict__ index,             \
        bf16 *__restrict__ out, int64_t ld_out, TILED

// With `ZEROS`, the index of all ones (-1) means a row of zeros. All indices are loaded before the first row, and a row
// that is not there is row 0's, thrown away: a branch would put the loads one behind the other.
template <int WIDTH, bool ZEROS>
DEVICE void rows_gather(ROWS_GATHER) {
    const Place at = place<WIDTH>(lanes, chunks, ROWS_REPEAT);
    if (at.col >= cols) return;
    uint32_t from[ROWS_REPEAT];
#pragma unroll
    for (int j = 0; j < ROWS_REPEAT; j++) {
        const int64_t row = at.row + j * at.step;
        from[j] = row < rows ? index[row] : 0;
    }
    Packed<WIDTH> kept[ROWS_REPEAT];
#pragma unroll
    for (int j = 0; j < ROWS_REPEAT; j++) {
        load_packed(m + static_cast<int64_t>(from[j] < m_rows ? from[j] : 0) * ld_m + at.col, kept[j]);
    }
#pragma unroll
    for (int j = 0; j < ROWS_REPEAT; j++) {
        const int64_t row = at.row + j * at.step;
        if (from[j] >= m_rows) splat(ZEROS && from[j] == 0xffffffffu ? 0 : NAN_BITS, kept[j]);
        if (row < rows) store_packed(out + row * ld_out + at.col, kept[j]);
    }
}

#define PASS_ROWS_GATHER m, ld_m, m_rows, index, out, ld_out, rows, cols, lanes, chunks

KERNEL(rows_gather_8, 256)(ROWS_GATHER) { rows_gather<8, false>(PASS_ROWS_GATHER); }
KERNEL(rows_gather_1, 256)(ROWS_GATHER) { rows_gather<1, false>(PASS_ROWS_GATHER); }
KERNEL(rows_scatter_8, 256)(ROWS_GATHER) { rows_gather<8, true>(PASS_ROWS_GATHER); }
KERNEL(rows_scatter_1, 256)(ROWS_GATHER) { rows_gather<1, true>(PASS_ROWS_GATHER); }

#define ROWS_PAIR const bf16 *__restrict__ m, int64_t ld_m, bf16 *__restrict__ out, int64_t ld_out, TILED

template <int WIDTH>
DEVICE void rows_copy(ROWS_PAIR) {
    rows_sweep<WIDTH>(
        rows, cols, lanes, chunks,
        [=](int64_t row, int col) {
            Packed<WIDTH> v;
            load_packed(m + row * ld_m + col, v);
            return v;
        },
        [=](int64_t row, int col, const Packed<WIDTH>& v) { store_packed(out + row * ld_out + col, v); });
}

template <int WIDTH>
struct RowsTerms {
    Packed<WIDTH> a, b;
};

template <int WIDTH>
DEVICE void rows_add(ROWS_PAIR) {
    rows_sweep<WIDTH>(
        rows, cols, lanes, chunks,
        [=](int64_t row, int col) {
            RowsTerms<WIDTH> v;
            load_packed(m + row * ld_m + col, v.a);
            load_packed(out + row * ld_out + col, v.b);
            return v;
        },
        [=](int64_t row, int col, const RowsTerms<WIDTH>& v) {
            float a[WIDTH], b[WIDTH];
            unpack(v.a, a);
            unpack(v.b, b);
#pragma unroll
            for (int i = 0; i < WIDTH; i++) a[i] += b[i];
            store_packed(out + row * ld_out + col, pack(a));
        });
}

#define PASS_ROWS_PAIR m, ld_m, out, ld_out, rows, cols, lanes, chunks

KERNEL(rows_copy_8, 256)(ROWS_PAIR) { rows_copy<8>(PASS_ROWS_PAIR); }
KERNEL(rows_copy_1, 256)(ROWS_PAIR) { rows_copy<1>(PASS_ROWS_PAIR); }
KERNEL(rows_add_8, 256)(ROWS_PAIR) { rows_add<8>(PASS_ROWS_PAIR); }
KERNEL(rows_add_1, 256)(ROWS_PAIR) { rows_add<1>(PASS_ROWS_PAIR); }

#define ROWS_FILL bf16 *__restrict__ out, int64_t ld_out, float value, TILED

template <int WIDTH>
DEVICE void rows_fill(ROWS_FILL) {
    Packed<WIDTH> v;
    splat(to_bf16(value).bits, v);
    rows_sweep<WIDTH>(
        rows, cols, lanes, chunks, [=](int64_t, int) { return 0; },
        [=](int64_t row, int col, int) { store_packed(out + row * ld_out + col, v); });
}

#define PASS_ROWS_FILL out, ld_out, value, rows, cols, lanes, chunks

KERNEL(rows_fill_8, 256)(ROWS_FILL) { rows_fill<8>(PASS_ROWS_FILL); }
KERNEL(rows_fill_1, 256)(ROWS_FILL) { rows_fill<1>(PASS_ROWS_FILL); }

#define ROWS_NARROW float alpha, const float *__restrict__ m, int64_t ld_m, bf16 *__restrict__ out, int64_t ld_out, TILED
#define ROWS_WIDEN const bf16 *__restrict__ m, int64_t ld_m, float *__restrict__ out, int64_t ld_out, TILED

template <int WIDTH>
DEVICE void rows_narrow(ROWS_NARROW) {
    rows_sweep<WIDTH>(
        rows, cols, lanes, chunks,
        [=](int64_t row, int col) {
            RowsFloats<WIDTH> v;
            load_floats(m + row * ld_m + col, v.v);
            return v;
        },
        [=](int64_t row, int col, RowsFloats<WIDTH> v) {
#pragma unroll
            for (int i = 0; i < WIDTH; i++) v.v[i] *= alpha;
            store_packed(out + row * ld_out + col, pack(v.v));
        });
}

template <int WIDTH>
DEVICE void rows_widen(ROWS_WIDEN) {
    rows_sweep<WIDTH>(
        rows, cols, lanes, chunks,
        [=](int64_t row, int col) {
            Packed<WIDTH> v;
            load_packed(m + row * ld_m + col, v);
            return v;
        },
        [=](int64_t row, int col, const Packed<WIDTH>& v) {
            float values[WIDTH];
            unpack(v, values);
            store_floats(out + row * ld_out + col, values);
        });
}

#define PASS_ROWS_CAST m, ld_m, out, ld_out, rows, cols, lanes, chunks

KERNEL(rows_narrow_8, 256)(ROWS_NARROW) { rows_narrow<8>(alpha, PASS_ROWS_CAST); }
KERNEL(rows_narrow_1, 256)(ROWS_NARROW) { rows_narrow<1>(alpha, PASS_ROWS_CAST); }
KERNEL(rows_widen_8, 256)(ROWS_WIDEN) { rows_widen<8>(PASS_ROWS_CAST); }
KERNEL(rows_widen_1, 256)(ROWS_WIDEN) { rows_widen<1>(PASS_ROWS_CAST); }
