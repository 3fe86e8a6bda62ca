//! Every kernel at the shapes of a training step, ready to run: generic over the device, so that a test runs the same
//! cases, small, on the emulator.

use tunesmith_kernels::gpu::gemm::{Factor, Output, gemm};
use tunesmith_kernels::gpu::{
    Driver, Element, Result, Slice, View, ViewMut, bf16, dropout, rms_norm, rope, rows, swiglu,
};

/// A model's and a batch's measures.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// Tokens of a batch.
    pub(crate) tokens: usize,
    /// Width of the residual stream.
    pub(crate) dim: usize,
    /// Width of the feed-forward network.
    pub(crate) ffn: usize,
    /// Heads of q.
    pub(crate) heads: usize,
    /// Heads of k and of v.
    pub(crate) kv_heads: usize,
    /// Width of a head.
    pub(crate) head_dim: usize,
    /// Tokens that there are.
    pub(crate) vocab: usize,
    /// Ranks of one group of LoRA matrices, padded.
    pub(crate) rank: usize,
    /// Rows of logits at a time.
    pub(crate) chunk: usize,
    /// Bytes that the buffers of a case must exceed in all, so that no cache holds them from one run to the next.
    pub(crate) beyond_cache: usize,
}

impl Sizes {
    fn qkv(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }
}

/// What a run of a case is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Bytes read and written at the least: memory bounds it.
    Bytes(usize),
    /// Multiplications and additions: the tensor cores bound it.
    Flops(usize),
}

/// A kernel with its buffers.
pub(crate) struct Case<D: Driver> {
    /// What its run is counted in.
    pub(crate) work: Work,
    /// How many sets of buffers there are to go through.
    pub(crate) sets: usize,
    /// Queues it once, on one set of buffers.
    pub(crate) run: Run<D>,
}

type Run<D> = Box<dyn FnMut(&D, usize) -> Result<()>>;
type Make<D> = fn(&D, &Sizes) -> Result<Case<D>>;

/// Name and maker of every case. Each allocates its buffers when it is made.
pub(crate) fn all<D: Driver>() -> Vec<(&'static str, Make<D>)> {
    vec![
        ("embedding", embedding),
        ("rms_norm", norm),
        ("rms_norm backward", norm_backward),
        ("rope", rotate),
        ("swiglu", activate),
        ("swiglu backward", activate_backward),
        ("dropout", drop_out),
        ("rows copy", copy),
        ("rows add", add),
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

/// `len` values between -1 and 1.
pub(crate) fn random<D: Driver>(d: &D, len: usize) -> Result<Slice<D, bf16>> {
    // A block of them over and over: the device cannot tell, and the host is done in a moment.
    let mut state = 0x9e37_79b9_u32;
    let block: Vec<bf16> = (0..len.min(1 << 20))
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            bf16::from_f32(state as f32 / (1_u32 << 31) as f32 - 1.0)
        })
        .collect();
    let mut out = Slice::uninit(d, len)?;
    for at in (0..len).step_by(block.len().max(1)) {
        out.write(d, at, &block[..block.len().min(len - at)])?;
    }
    Ok(out)
}

/// A case of `sets` sets of buffers, each made by `make` and used by `run`.
fn case<D: Driver, B: 'static>(
    s: &Sizes,
    work: Work,
    bytes: usize,
    make: impl Fn() -> Result<B>,
    mut run: impl FnMut(&D, &mut B) -> Result<()> + 'static,
) -> Result<Case<D>> {
    let sets = (s.beyond_cache / bytes.max(1)).clamp(1, 64) + 1;
    let mut buffers = (0..sets).map(|_| make()).collect::<Result<Vec<B>>>()?;
    Ok(Case { work, sets, run: Box::new(move |d, set| run(d, &mut buffers[set])) })
}

/// A case bound by memory.
fn streaming<D: Driver, B: 'static>(
    s: &Sizes,
    bytes: usize,
    make: impl Fn() -> Result<B>,
    run: impl FnMut(&D, &mut B) -> Result<()> + 'static,
) -> Result<Case<D>> {
    case(s, Work::Bytes(bytes), bytes, make, run)
}

fn view<D: Driver, T: Element>(slice: &Slice<D, T>, rows: usize, cols: usize, ld: usize) -> View<'_, D, T> {
    View::new(slice, rows, cols, ld)
}

fn out<D: Driver, T: Element>(
    slice: &mut Slice<D, T>,
    rows: usize,
    cols: usize,
    ld: usize,
) -> ViewMut<'_, D, T> {
    ViewMut::new(slice, rows, cols, ld)
}

fn embedding<D: Driver>(d: &D, s: &Sizes) -> Result<Case<D>> {
    let Sizes { tokens, dim, vocab, .. } = *s;
    let ids: Vec<u32> = (0..tokens).map(|i| (i * 7919 % vocab) as u32).collect();
    let make = || {
        Ok((random(d, vocab * dim)?, Slice::from_host(d, &ids)?, Slice::<D, bf16>::uninit(d, tokens * dim)?))
    };
    streaming(s, 4 * tokens * dim, make, move |d, (table, ids, x)| {
        rows::gather(d, view(table, vocab, dim, dim), ids, out(x, tokens, dim, dim))
    })
}

fn norm<D: Driver>(d: &D, s: &Sizes) -> Result<Case<D>> {
    let Sizes { tokens, dim, rank, .. } = *s;
    let make = || {
        let y = Slice::<D, bf16>::uninit(d, tokens * (dim + rank))?;
        Ok((random(d, tokens * dim)?, random(d, dim)?, y, Slice::<D, f32>::uninit(d, tokens)?))
    };
    streaming(s, 4 * tokens * dim, make, move |d, (x, w, y, rstd)| {
        rms_norm::rms_norm(d, view(x, tokens, dim, dim), w, 1e-5, out(y, tokens, dim, dim + rank), rstd)
    })
}

fn norm_backward<D: Driver>(d: &D, s: &Sizes) -> Result<Case<D>> {
    let Sizes { tokens, dim, rank, .. } = *s;
    let rstd = vec![1.7_f32; tokens];
    let make = || {
        let (dy, x, dx) = (random(d, tokens * dim)?, random(d, tokens * dim)?, random(d, tokens * dim)?);
        let y = Slice::<D, bf16>::uninit(d, tokens * (dim + rank))?;
        Ok((dy, x, random(d, dim)?, Slice::from_host(d, &rstd)?, dx, y))
    };
    streaming(s, 10 * tokens * dim, make, move |d, (dy, x, w, rstd, dx, y)| {
        let (dy, x) = (view(dy, tokens, dim, dim), view(x, tokens, dim, dim));
        let y = out(y, tokens, dim, dim + rank);
        rms_norm::rms_norm_backward(d, dy, x, w, rstd, out(dx, tokens, dim, dim), Some(y))
    })
}

fn rotate<D: Driver>(d: &D, s: &Sizes) -> Result<Case<D>> {
    let (tokens, half, ld) = (s.tokens, s.head_dim / 2, s.qkv());
    let cols = (s.heads + s.kv_heads) * s.head_dim;
    let positions: Vec<i32> = (0..tokens).map(|t| (t % 2048) as i32).collect();
    let largest = tokens.min(2048) - 1;
    let angles = (largest + 1) * half;
    let cos: Vec<f32> = (0..angles).map(|i| (i as f32).cos()).collect();
    let sin: Vec<f32> = (0..angles).map(|i| (i as f32).sin()).collect();
    let make = || {
        let (cos, sin) = (Slice::from_host(d, &cos)?, Slice::from_host(d, &sin)?);
        Ok((random(d, tokens * ld)?, Slice::from_host(d, &positions)?, cos, sin))
    };
    streaming(s, 4 * tokens * cols, make, move |d, (x, positions, cos, sin)| {
        rope::rope(d, out(x, tokens, cols, ld), positions, largest, rope::Table { cos, sin, half }, false)
    })
}

fn activate<D: Driver>(d: &D, s: &Sizes) -> Result<Case<D>> {
    let Sizes { tokens, ffn, rank, .. } = *s;
    let make = || Ok((random(d, tokens * 2 * ffn)?, Slice::<D, bf16>::uninit(d, tokens * (ffn + rank))?));
    streaming(s, 6 * tokens * ffn, make, move |d, (gate_up, h)| {
        swiglu::swiglu(d, view(gate_up, tokens, 2 * ffn, 2 * ffn), out(h, tokens, ffn, ffn + rank))
    })
}

fn activate_backward<D: Driver>(d: &D, s: &Sizes) -> Result<Case<D>> {
    let Sizes { tokens, ffn, rank, .. } = *s;
    let make = || {
        let h = Slice::<D, bf16>::uninit(d, tokens * (ffn + rank))?;
        Ok((random(d, tokens * ffn)?, random(d, tokens * (2 * ffn + rank))?, h))
    };
    streaming(s, 12 * tokens * ffn, make, move |d, (dh, gate_up, h)| {
        let gate_up = out(gate_up, tokens, 2 * ffn, 2 * ffn + rank);
        swiglu::swiglu_backward(d, view(dh, tokens, ffn, ffn), gate_up, out(h, tokens, ffn, ffn + rank))
    })
}

fn drop_out<D: Driver>(d: &D, s: &Sizes) -> Result<Case<D>> {
    let Sizes { tokens, dim, .. } = *s;
    let names: Vec<u32> = (0..2 * tokens as u32).collect();
    let key = dropout::Key { seed: 1, step: 2, site: 3 };
    let make = || {
        let y = Slice::<D, bf16>::uninit(d, tokens * dim)?;
        Ok((random(d, tokens * dim)?, Slice::from_host(d, &names)?, y))
    };
    streaming(s, 4 * tokens * dim, make, move |d, (x, names, y)| {
        dropout::dropout(d, view(x, tokens, dim, dim), key, 0.1, names, out(y, tokens, dim, dim))
    })
}

/// Our own kernel's copy.
pub(crate) fn copy<D: Driver>(d: &D, s: &Sizes) -> Result<Case<D>> {
    let Sizes { tokens, dim, .. } = *s;
    let make = || Ok((random(d, tokens * dim)?, Slice::<D, bf16>::uninit(d, tokens * dim)?));
    streaming(s, 4 * tokens * dim, make, move |d, (x, y)| {
        rows::copy(d, view(x, tokens, dim, dim), out(y, tokens, dim, dim))
    })
}

fn add<D: Driver>(d: &D, s: &Sizes) -> Result<Case<D>> {
    let Sizes { tokens, dim, .. } = *s;
    let make = || Ok((random(d, tokens * dim)?, random(d, tokens * dim)?));
    streaming(s, 6 * tokens * dim, make, move |d, (x, y)| {
        rows::add(d, view(x, tokens, dim, dim), out(y, tokens, dim, dim))
    })
}

/// A product `[m, n] = op(A) [m, k] · op(B) [k, n]` of matrices with these distances between rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dims {
    /// Rows of C.
    pub(crate) m: usize,
    /// Columns of C.
    pub(crate) n: usize,
    /// Depth.
    pub(crate) k: usize,
    /// Whether A is stored transposed.
    pub(crate) ta: bool,
    /// Whether B is.
    pub(crate) tb: bool,
    /// Columns that lie beside those of A, B and C in memory.
    pub(crate) beside: [usize; 3],
    /// Factor of what C holds.
    pub(crate) beta: f32,
    /// Whether memory and not arithmetic bounds it.
    pub(crate) skinny: bool,
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

/// A case of a product.
pub(crate) fn product<D: Driver, T: Output>(d: &D, s: &Sizes, dims: Dims) -> Result<Case<D>> {
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
