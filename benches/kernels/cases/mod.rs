//! Every kernel at the shapes of a training step, ready to run: generic over the device, so that a test runs the same
//! cases, small, on the emulator.

mod attention;
mod products;
mod rows;
mod step;

use tunesmith_kernels::gpu::{Driver, Element, Result, Slice, View, ViewMut, bf16};

pub(crate) use products::square;
pub(crate) use rows::copy;

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
    /// Tokens of a document.
    pub(crate) document: usize,
    /// Trained parameters of all layers: a multiple of `rank * dim`.
    pub(crate) trained: usize,
    /// Side of the large square product.
    pub(crate) square: usize,
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

pub(crate) type Run<D> = Box<dyn FnMut(&D, usize) -> Result<()>>;
pub(crate) type Make<D> = fn(&D, &Sizes) -> Result<Case<D>>;

/// Name and maker of every case. Each allocates its buffers when it is made.
pub(crate) fn all<D: Driver>() -> Vec<(&'static str, Make<D>)> {
    [rows::all(), attention::all(), step::all(), products::all()].into_iter().flatten().collect()
}

/// `len` values between -1 and 1.
fn random<D: Driver>(d: &D, len: usize) -> Result<Slice<D, bf16>> {
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
