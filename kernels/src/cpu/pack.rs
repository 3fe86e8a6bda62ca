//! Copies blocks of A and B into the order in which the tile kernels read them.

use super::simd::multiversion;

multiversion! {
    /// Packs `rows` x `depth` of a strided matrix into one panel `[depth][width]`, rows beyond `rows` as zeros.
    ///
    /// `src` starts at the panel's first element; element `(i, p)` is at `i * row_stride + p * depth_stride`.
    pub(super) fn pack_panel(src: &[f32], row_stride: usize, depth_stride: usize, rows: usize, depth: usize, width: usize, out: &mut [f32]) {
        debug_assert!(rows <= width && out.len() >= depth * width);
        if row_stride == 1 {
            for (p, dst) in out.chunks_exact_mut(width).take(depth).enumerate() {
                let at = p * depth_stride;
                dst[..rows].copy_from_slice(&src[at..at + rows]);
                dst[rows..].fill(0.0);
            }
            return;
        }
        // Blocks of 16 in depth: every cache line that is touched is used whole.
        for p0 in (0..depth).step_by(16) {
            let pn = 16.min(depth - p0);
            for i in 0..width {
                if i >= rows {
                    for p in 0..pn {
                        out[(p0 + p) * width + i] = 0.0;
                    }
                } else if depth_stride == 1 {
                    let at = i * row_stride + p0;
                    for (p, &v) in src[at..at + pn].iter().enumerate() {
                        out[(p0 + p) * width + i] = v;
                    }
                } else {
                    for p in 0..pn {
                        out[(p0 + p) * width + i] = src[i * row_stride + (p0 + p) * depth_stride];
                    }
                }
            }
        }
    }
}
