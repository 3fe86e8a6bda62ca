//! The innermost loops of the matrix product: one register tile of C over one depth block.
//!
//! Every tile kernel computes `acc[i][j] = Σ_p a[p][i] · b[p][j]` with one fused multiply-add per product, p
//! ascending, one accumulator per element. An element of C therefore has the same bits whatever tile, block
//! or thread it falls into.

use super::simd::{Level, level};

/// Largest tile of any level, for scratch on the stack.
pub(super) const MAX_TILE: usize = 14 * 32;

/// Where a tile goes: `out = alpha · acc`, or `out += alpha · acc`, with rows `ld` apart.
#[derive(Clone, Copy)]
pub(super) struct Out {
    pub(super) at: *mut f32,
    pub(super) ld: usize,
    pub(super) alpha: f32,
    pub(super) accumulate: bool,
}

/// `(depth, packed a, packed b, out)`: writes a whole tile.
type TileFn = unsafe fn(usize, *const f32, *const f32, Out);

/// A register tile: its sides and the two kernels for a full and a half-width panel of B.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub(super) mr: usize,
    pub(super) nr: usize,
    /// Depth of a block at most: a panel of B stays in the first-level cache (AVX2) or streams from the second
    /// (AVX-512), and each block is one pass over C.
    pub(super) kc: usize,
    full: TileFn,
    half: TileFn,
}

impl Tile {
    /// The tile of this machine.
    pub(super) fn get() -> Self {
        match level() {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => Self { mr: 14, nr: 32, kc: 576, full: avx512::<2>, half: avx512::<1> },
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => Self { mr: 6, nr: 16, kc: 320, full: avx2::<2>, half: avx2::<1> },
            _ => Self { mr: 4, nr: 16, kc: 256, full: portable::<16>, half: portable::<8> },
        }
    }

    /// Width of the panel that starts at column `j` of `n`: a half panel where that is enough.
    pub(super) fn panel_width(self, j: usize, n: usize) -> usize {
        if n - j <= self.nr / 2 { self.nr / 2 } else { self.nr }
    }

    /// Computes one whole tile of `mr` x `width`.
    ///
    /// # Safety
    /// `a` must hold `depth * mr` values, `b` `depth * width`, and `out` must have room for `mr` rows of
    /// `width`, `out.ld` apart; `width` is `nr` or `nr / 2`.
    pub(super) unsafe fn run(self, width: usize, depth: usize, a: *const f32, b: *const f32, out: Out) {
        let f = if width == self.nr { self.full } else { self.half };
        // SAFETY: passed on to the caller; the kernel was chosen for this machine's level.
        unsafe { f(depth, a, b, out) }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512<const NV: usize>(depth: usize, mut a: *const f32, mut b: *const f32, out: Out) {
    use std::arch::x86_64::{
        _MM_HINT_T0, _mm_prefetch, _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mul_ps,
        _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
    };
    const MR: usize = 14;
    const AHEAD: usize = 16;
    let mut acc = [[_mm512_setzero_ps(); NV]; MR];
    for _ in 0..depth {
        // SAFETY: the caller guarantees `depth` rows of MR and NV * 16 values, and room for the tile.
        unsafe {
            // The panels stream from the second-level cache; asked for this far ahead, they are there in time.
            for v in 0..NV {
                _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(16 * (NV * AHEAD + v)).cast());
            }
            _mm_prefetch::<_MM_HINT_T0>(a.wrapping_add(MR * AHEAD).cast());
            let mut bv = [_mm512_setzero_ps(); NV];
            for (v, lane) in bv.iter_mut().enumerate() {
                *lane = _mm512_loadu_ps(b.add(16 * v));
            }
            for (i, row) in acc.iter_mut().enumerate() {
                let ai = _mm512_set1_ps(*a.add(i));
                for (c, &bl) in row.iter_mut().zip(&bv) {
                    *c = _mm512_fmadd_ps(ai, bl, *c);
                }
            }
            a = a.add(MR);
            b = b.add(16 * NV);
        }
    }
    let alpha = _mm512_set1_ps(out.alpha);
    for (i, row) in acc.iter().enumerate() {
        for (v, c) in row.iter().enumerate() {
            // SAFETY: as above.
            unsafe {
                let at = out.at.add(i * out.ld + v * 16);
                let mut c = _mm512_mul_ps(alpha, *c);
                if out.accumulate {
                    c = _mm512_add_ps(_mm512_loadu_ps(at), c);
                }
                _mm512_storeu_ps(at, c);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<const NV: usize>(depth: usize, mut a: *const f32, mut b: *const f32, out: Out) {
    use std::arch::x86_64::{
        _MM_HINT_T0, _mm_prefetch, _mm256_add_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_mul_ps,
        _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps,
    };
    const MR: usize = 6;
    const AHEAD: usize = 32;
    let mut acc = [[_mm256_setzero_ps(); NV]; MR];
    for _ in 0..depth {
        // SAFETY: the caller guarantees `depth` rows of MR and NV * 8 values, and room for the tile.
        unsafe {
            // The panel of A streams from the second-level cache.
            _mm_prefetch::<_MM_HINT_T0>(a.wrapping_add(MR * AHEAD).cast());
            let mut bv = [_mm256_setzero_ps(); NV];
            for (v, lane) in bv.iter_mut().enumerate() {
                *lane = _mm256_loadu_ps(b.add(8 * v));
            }
            for (i, row) in acc.iter_mut().enumerate() {
                let ai = _mm256_set1_ps(*a.add(i));
                for (c, &bl) in row.iter_mut().zip(&bv) {
                    *c = _mm256_fmadd_ps(ai, bl, *c);
                }
            }
            a = a.add(MR);
            b = b.add(8 * NV);
        }
    }
    let alpha = _mm256_set1_ps(out.alpha);
    for (i, row) in acc.iter().enumerate() {
        for (v, c) in row.iter().enumerate() {
            // SAFETY: as above.
            unsafe {
                let at = out.at.add(i * out.ld + v * 8);
                let mut c = _mm256_mul_ps(alpha, *c);
                if out.accumulate {
                    c = _mm256_add_ps(_mm256_loadu_ps(at), c);
                }
                _mm256_storeu_ps(at, c);
            }
        }
    }
}

unsafe fn portable<const W: usize>(depth: usize, a: *const f32, b: *const f32, out: Out) {
    const MR: usize = 4;
    // SAFETY: the caller guarantees these lengths.
    let (a, b) =
        unsafe { (std::slice::from_raw_parts(a, depth * MR), std::slice::from_raw_parts(b, depth * W)) };
    let mut acc = [[0f32; W]; MR];
    for (ap, bp) in a.chunks_exact(MR).zip(b.chunks_exact(W)) {
        for (row, &ai) in acc.iter_mut().zip(ap) {
            for (c, &bj) in row.iter_mut().zip(bp) {
                *c += ai * bj;
            }
        }
    }
    for (i, row) in acc.iter().enumerate() {
        // SAFETY: the caller guarantees MR rows of W.
        let dst = unsafe { std::slice::from_raw_parts_mut(out.at.add(i * out.ld), W) };
        for (d, &c) in dst.iter_mut().zip(row) {
            *d = if out.accumulate { *d + out.alpha * c } else { out.alpha * c };
        }
    }
}
