//! Copies blocks of A and B into the order in which the tile kernels read them: panels of `width` rows (of A) or
//! columns (of B), `[depth][width]`, zeros where the matrix ends.

use super::simd::{Level, level, multiversion};

/// A strided block to pack: element `(i, p)` is at `i * row_stride + p * depth_stride` of `data`.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    pub(super) data: &'a [f32],
    pub(super) row_stride: usize,
    pub(super) depth_stride: usize,
    pub(super) rows: usize,
    pub(super) depth: usize,
}

impl<'a> Block<'a> {
    fn skip_rows(self, row: usize) -> Self {
        let data: &'a [f32] = self.data.get(row * self.row_stride..).unwrap_or_default();
        Self { data, rows: self.rows - row, ..self }
    }

    /// Packs the whole block into consecutive panels of `width`, `width * depth` values apart in `out`. The last
    /// panel may be `last_width` wide.
    pub(super) fn pack(self, width: usize, last_width: usize, out: &mut [f32]) {
        if self.row_stride == 1 {
            return pack_rows(self.data, self.depth_stride, self.rows, self.depth, width, last_width, out);
        }
        for (panel, out) in out.chunks_mut(width * self.depth).enumerate() {
            let at = panel * width;
            if at >= self.rows {
                break;
            }
            let width = if at + width >= self.rows { last_width } else { width };
            let block = self.skip_rows(at);
            let rows = width.min(block.rows);
            if self.depth_stride == 1 && transposes() {
                transpose(block.data, block.row_stride, rows, block.depth, width, out);
            } else {
                pack_strided(block.data, block.row_stride, block.depth_stride, rows, block.depth, width, out);
            }
        }
    }
}

multiversion! {
    /// Rows are contiguous: every line of the source is read once, end to end, across all panels.
    fn pack_rows(data: &[f32], depth_stride: usize, rows: usize, depth: usize, width: usize, last_width: usize, out: &mut [f32]) {
        for p in 0..depth {
            let line = &data[p * depth_stride..p * depth_stride + rows];
            for (panel, src) in line.chunks(width).enumerate() {
                let last = (panel + 1) * width >= rows;
                let w = if last { last_width } else { width };
                let at = panel * width * depth + p * w;
                match (src.len(), w) {
                    // Lengths that the compiler knows become a few vector moves.
                    (32, 32) => out[at..at + 32].copy_from_slice(&src[..32]),
                    (16, 16) => out[at..at + 16].copy_from_slice(&src[..16]),
                    (14, 14) => out[at..at + 14].copy_from_slice(&src[..14]),
                    (6, 6) => out[at..at + 6].copy_from_slice(&src[..6]),
                    (n, _) => {
                        out[at..at + n].copy_from_slice(src);
                        out[at + n..at + w].fill(0.0);
                    }
                }
            }
        }
    }
}

multiversion! {
    fn pack_strided(data: &[f32], row_stride: usize, depth_stride: usize, rows: usize, depth: usize, width: usize, out: &mut [f32]) {
        // Blocks of 16 in depth: every cache line that is touched is used whole.
        for p0 in (0..depth).step_by(16) {
            let pn = 16.min(depth - p0);
            for i in 0..width {
                for p in p0..p0 + pn {
                    out[p * width + i] = if i < rows { data[i * row_stride + p * depth_stride] } else { 0.0 };
                }
            }
        }
    }
}

fn transposes() -> bool {
    cfg!(target_arch = "x86_64") && level() != Level::Baseline
}

/// One panel of a block whose depth is contiguous, transposed in registers: 16 x 16 values at a time with AVX-512,
/// 8 x 8 with AVX2.
fn transpose(data: &[f32], row_stride: usize, rows: usize, depth: usize, width: usize, out: &mut [f32]) {
    assert!(rows >= 1 && depth >= 1 && rows <= width && out.len() >= width * depth);
    assert!(data.len() >= (rows - 1) * row_stride + depth);
    #[cfg(target_arch = "x86_64")]
    {
        let wide = level() == Level::Avx512;
        let side = if wide { 16 } else { 8 };
        for i0 in (0..width).step_by(side) {
            let lanes = side.min(width - i0);
            for p0 in (0..depth).step_by(side) {
                let (rows, pn) = (rows.saturating_sub(i0).min(side), side.min(depth - p0));
                let src = data.as_ptr().wrapping_add(i0 * row_stride + p0);
                let room = &mut out[p0 * width + i0..width * depth];
                // SAFETY: `transposes` found AVX2 at least, and AVX-512 where `wide`; rows i0..i0+rows and depths
                // p0..p0+pn lie inside `data`, and `pn` lines of `lanes` values, `width` apart, inside `room`: the
                // assertions above.
                unsafe {
                    if wide {
                        transpose_16(src, row_stride, rows, pn, room.as_mut_ptr(), width, lanes);
                    } else {
                        transpose_8(src, row_stride, rows, pn, room, width, lanes);
                    }
                }
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (data, row_stride, out);
}

/// As [`transpose_16`], with counts up to 8. Where `lanes` is below 8, a line may be followed by zeros inside `out`:
/// lines are written in ascending order, so only what comes after this block's lanes is touched.
///
/// # Safety
/// `rows` rows of `depth` values, `row_stride` apart, must be readable at `src`; none of the counts may be above 8.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn transpose_8(
    src: *const f32,
    row_stride: usize,
    rows: usize,
    depth: usize,
    out: &mut [f32],
    out_stride: usize,
    lanes: usize,
) {
    use std::arch::x86_64::{
        _mm256_loadu_ps, _mm256_permute2f128_ps, _mm256_setzero_ps, _mm256_shuffle_ps, _mm256_storeu_ps,
        _mm256_unpackhi_ps, _mm256_unpacklo_ps,
    };
    let mut r = [_mm256_setzero_ps(); 8];
    for (i, row) in r.iter_mut().enumerate().take(rows) {
        // SAFETY: the caller guarantees this row of `depth` values.
        *row = unsafe {
            let at = src.add(i * row_stride);
            if depth == 8 {
                _mm256_loadu_ps(at)
            } else {
                let mut line = [0f32; 8];
                line[..depth].copy_from_slice(std::slice::from_raw_parts(at, depth));
                _mm256_loadu_ps(line.as_ptr())
            }
        };
    }
    let mut t = r;
    for i in 0..4 {
        t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    // After this, 128-bit lane L of u[4 j + c] holds column 4 L + c of rows 4 j .. 4 j + 3.
    let mut u = t;
    for j in 0..2 {
        u[4 * j] = _mm256_shuffle_ps::<0x44>(t[4 * j], t[4 * j + 2]);
        u[4 * j + 1] = _mm256_shuffle_ps::<0xEE>(t[4 * j], t[4 * j + 2]);
        u[4 * j + 2] = _mm256_shuffle_ps::<0x44>(t[4 * j + 1], t[4 * j + 3]);
        u[4 * j + 3] = _mm256_shuffle_ps::<0xEE>(t[4 * j + 1], t[4 * j + 3]);
    }
    let mut column = u;
    for c in 0..4 {
        column[c] = _mm256_permute2f128_ps::<0x20>(u[c], u[4 + c]);
        column[4 + c] = _mm256_permute2f128_ps::<0x31>(u[c], u[4 + c]);
    }
    for (p, line) in column.iter().enumerate().take(depth) {
        let room = &mut out[p * out_stride..];
        if room.len() >= 8 && (lanes == 8 || out_stride < 8) {
            // SAFETY: eight values fit, the line above. Rows of fewer than eight lanes make up the whole panel here,
            // so that the values after this line's lanes belong to lines that are still to be written.
            unsafe { _mm256_storeu_ps(room.as_mut_ptr(), *line) };
        } else {
            let mut values = [0f32; 8];
            // SAFETY: `values` holds eight.
            unsafe { _mm256_storeu_ps(values.as_mut_ptr(), *line) };
            room[..lanes].copy_from_slice(&values[..lanes]);
        }
    }
}

/// Writes `depth` lines of `lanes` values: line `p` holds value `p` of each of `rows` rows, then zeros.
///
/// # Safety
/// `rows` rows of `depth` values, `row_stride` apart, must be readable at `src`, and `depth` lines of `lanes` values,
/// `out_stride` apart, writable at `out`; none of the counts may be above 16.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn transpose_16(
    src: *const f32,
    row_stride: usize,
    rows: usize,
    depth: usize,
    out: *mut f32,
    out_stride: usize,
    lanes: usize,
) {
    use std::arch::x86_64::{
        _mm512_castpd_ps, _mm512_castps_pd, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_setzero_ps,
        _mm512_shuffle_f32x4, _mm512_unpackhi_pd, _mm512_unpackhi_ps, _mm512_unpacklo_pd, _mm512_unpacklo_ps,
    };
    let mask = |n: usize| if n >= 16 { u16::MAX } else { (1 << n) - 1 };
    let mut r = [_mm512_setzero_ps(); 16];
    for (i, row) in r.iter_mut().enumerate() {
        if i < rows {
            // SAFETY: the caller guarantees this row; the mask keeps to its `depth` values.
            *row = unsafe { _mm512_maskz_loadu_ps(mask(depth), src.add(i * row_stride)) };
        }
    }
    let mut t = r;
    for i in 0..8 {
        t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    // After this, 128-bit lane L of u[4 j + c] holds column 4 L + c of rows 4 j .. 4 j + 3.
    let mut u = t;
    for j in 0..4 {
        let d = |i: usize| _mm512_castps_pd(t[4 * j + i]);
        u[4 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(d(0), d(2)));
        u[4 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(d(0), d(2)));
        u[4 * j + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(d(1), d(3)));
        u[4 * j + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(d(1), d(3)));
    }
    let mut column = u;
    for c in 0..4 {
        let even = _mm512_shuffle_f32x4::<0x88>(u[c], u[4 + c]);
        let even2 = _mm512_shuffle_f32x4::<0x88>(u[8 + c], u[12 + c]);
        let odd = _mm512_shuffle_f32x4::<0xDD>(u[c], u[4 + c]);
        let odd2 = _mm512_shuffle_f32x4::<0xDD>(u[8 + c], u[12 + c]);
        column[c] = _mm512_shuffle_f32x4::<0x88>(even, even2);
        column[8 + c] = _mm512_shuffle_f32x4::<0xDD>(even, even2);
        column[4 + c] = _mm512_shuffle_f32x4::<0x88>(odd, odd2);
        column[12 + c] = _mm512_shuffle_f32x4::<0xDD>(odd, odd2);
    }
    for (p, line) in column.iter().enumerate() {
        if p < depth {
            // SAFETY: the caller guarantees this line; the mask keeps to its `lanes` values.
            unsafe { _mm512_mask_storeu_ps(out.add(p * out_stride), mask(lanes), *line) };
        }
    }
}
