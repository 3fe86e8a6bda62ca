//! The matrix products of a training step: the frozen weights with LoRA in the same product, and the skinny ones of LoRA.

use tunesmith_kernels::gpu::gemm::{Factor, Output, gemm};
use tunesmith_kernels::gpu::{Driver, Result, Slice, bf16};

use super::{Case, Make, Sizes, Work, case, out, random, view};

/// Name and maker of every case.
pub(super) fn all<D: Driver>() -> Vec<(&'static str, Make<D>)> {
    vec![
        ("gemm qkv", |d, s| product::<D, bf16>(d, s, Dims::forward(s, s.qkv(), s.dim, 0.0))),
        ("gemm o + residual", |d, s| {
            product::<D, bf16>(d, s, Dims::forward(s, s.dim, s.heads * s.head_dim, 1.0))
        }),
        ("gemm gate up", |d, s| product::<D, bf16>(d, s, Dims::forward(s, 2 * s.ffn, s.dim, 0.0))),
        ("gemm down + residual", |d, s| product::<D, bf16>(d, s, Dims::forward(s, s.dim, s.ffn, 1.0))),
        ("gemm qkv backward", |d, s| product::<D, bf16>(d, s, Dims::backward(s, s.qkv(), s.dim))),
        ("gemm o backward", |d, s| product::<D, bf16>(d, s, Dims::backward(s, s.dim, s.heads * s.head_dim))),
        ("gemm gate up backward", |d, s| product::<D, bf16>(d, s, Dims::backward(s, 2 * s.ffn, s.dim))),
        ("gemm down backward", |d, s| product::<D, bf16>(d, s, Dims::backward(s, s.dim, s.ffn))),
        ("gemm logits", |d, s| {
            product::<D, bf16>(d, s, Dims { m: s.chunk, ..Dims::plain(s, s.vocab, s.dim) })
        }),
        ("gemm logits backward", |d, s| {
            let dims = Dims { m: s.chunk, tb: false, ..Dims::plain(s, s.dim, s.vocab) };
            product::<D, bf16>(d, s, dims)
        }),
        ("lora S = X At, dim", |d, s| product::<D, bf16>(d, s, Dims::down(s, s.dim))),
        ("lora S = X At, ffn", |d, s| product::<D, bf16>(d, s, Dims::down(s, s.ffn))),
        ("lora dS = dY B, dim", |d, s| product::<D, bf16>(d, s, Dims { tb: false, ..Dims::down(s, s.dim) })),
        ("lora dS = dY B, gate up", |d, s| {
            product::<D, bf16>(d, s, Dims { tb: false, ..Dims::down(s, 2 * s.ffn) })
        }),
        ("lora dB += dYt S, dim", |d, s| product::<D, f32>(d, s, Dims::gradient(s, s.dim, s.rank))),
        ("lora dB += dYt S, gate up", |d, s| product::<D, f32>(d, s, Dims::gradient(s, 2 * s.ffn, s.rank))),
        ("lora dA += dSt X, dim", |d, s| product::<D, f32>(d, s, Dims::gradient(s, s.rank, s.dim))),
        ("lora dA += dSt X, ffn", |d, s| product::<D, f32>(d, s, Dims::gradient(s, s.rank, s.ffn))),
    ]
}

/// A product `[m, n] = op(A) [m, k] · op(B) [k, n]` of matrices with these distances between rows.
#[derive(Debug, Clone, Copy)]
struct Dims {
    /// Rows of C.
    m: usize,
    /// Columns of C.
    n: usize,
    /// Depth.
    k: usize,
    /// Whether A is stored transposed.
    ta: bool,
    /// Whether B is.
    tb: bool,
    /// Columns that lie beside those of A, B and C in memory.
    beside: [usize; 3],
    /// Factor of what C holds.
    beta: f32,
    /// Whether memory and not arithmetic bounds it.
    skinny: bool,
}

impl Dims {
    /// Y = X Wᵀ, `n` wide, from `k` wide.
    fn plain(s: &Sizes, n: usize, k: usize) -> Self {
        Self { m: s.tokens, n, k, ta: false, tb: true, beside: [0; 3], beta: 0.0, skinny: false }
    }

    /// As [`Self::plain`] with LoRA in the same product: X and W have their low-rank columns beside them.
    fn forward(s: &Sizes, n: usize, k: usize, beta: f32) -> Self {
        Self { beta, ..Self::plain(s, n, k + s.rank) }
    }

    /// dX = dY W, with LoRA in the same product.
    fn backward(s: &Sizes, n: usize, k: usize) -> Self {
        Self { tb: false, beside: [0, s.rank, 0], ..Self::plain(s, k, n + s.rank) }
    }

    /// From `k` wide down to the ranks.
    fn down(s: &Sizes, k: usize) -> Self {
        Self { beside: [s.rank, s.rank, k], skinny: true, ..Self::plain(s, s.rank, k) }
    }

    /// The gradient of a low-rank matrix, summed over the tokens.
    fn gradient(s: &Sizes, m: usize, n: usize) -> Self {
        Self { m, k: s.tokens, ta: true, tb: false, beta: 1.0, skinny: true, ..Self::plain(s, n, 0) }
    }
}

/// What the others are held against.
pub(crate) fn square<D: Driver>(d: &D, s: &Sizes) -> Result<Case<D>> {
    let side = s.square;
    product::<D, bf16>(d, s, Dims { m: side, ..Dims::plain(s, side, side) })
}

fn product<D: Driver, T: Output>(d: &D, s: &Sizes, dims: Dims) -> Result<Case<D>> {
    let Dims { m, n, k, ta, tb, beside: [ba, bb, bc], beta, skinny } = dims;
    let ((ar, ac), (br, bc_cols)) = (if ta { (k, m) } else { (m, k) }, if tb { (n, k) } else { (k, n) });
    let (lda, ldb, ldc) = (ac + ba, bc_cols + bb, n + bc);
    let written = m * n * size_of::<T>();
    let bytes = 2 * (m * k + k * n) + if beta == 0.0 { written } else { 2 * written };
    let make = || {
        let c = Slice::<D, T>::zeros(d, m * ldc)?;
        Ok((random(d, ar * lda)?, random(d, br * ldb)?, c))
    };
    let work = if skinny { Work::Bytes(bytes) } else { Work::Flops(2 * m * n * k) };
    case(s, work, bytes, make, move |d, (a, b, c)| {
        let (a, b) = (Factor::new(view(a, ar, ac, lda)), Factor::new(view(b, br, bc_cols, ldb)));
        let (a, b) = (if ta { a.t() } else { a }, if tb { b.t() } else { b });
        gemm(d, 1.0, a, b, beta, out(c, m, n, ldc))
    })
}
