//! Causal attention over packed documents, forward and backward (`attention.cu`).

mod instance;
mod plan;

use half::bf16;

use self::instance::{Instance, Kernel};
pub use self::plan::{Documents, Plan, Room};
use super::driver::{Arg, Driver, Launch};
use super::error::{Result, expect};
use super::slice::{Slice, View, ViewMut};

const OP: &str = "attention";
/// The largest head that a kernel is there for.
pub const MAX_HEAD_DIM: usize = 256;
/// Offsets inside a tile of 128 rows have to fit in 32 bits.
pub(super) const MAX_LD: usize = 1 << 24;

/// The shape of an attention call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Size of a head: a multiple of 8 up to [`MAX_HEAD_DIM`]. Kernels are tuned for 64, 96 and 128.
    pub head_dim: usize,
    /// Keys that a query sees, itself included; `None` for all before it.
    pub window: Option<usize>,
}

impl Heads {
    pub(super) fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    pub(super) fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Query heads of a key/value head.
    pub(super) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// The window as kernels take it.
    pub(super) fn window(&self) -> i32 {
        self.window.and_then(|w| i32::try_from(w).ok()).unwrap_or(i32::MAX)
    }

    /// 1 / √`head_dim`.
    pub(super) fn scale(&self) -> f32 {
        (1.0 / (self.head_dim as f64).sqrt()) as f32
    }

    pub(super) fn check(&self, op: &'static str) -> Result<()> {
        let Self { heads, kv_heads, head_dim, window } = *self;
        expect(op, heads > 0 && kv_heads > 0 && heads.is_multiple_of(kv_heads), || {
            format!("{heads} query heads cannot be shared out among {kv_heads} key/value heads")
        })?;
        expect(op, head_dim > 0 && head_dim.is_multiple_of(8) && head_dim <= MAX_HEAD_DIM, || {
            format!("a head of {head_dim} is no multiple of 8 from 8 to {MAX_HEAD_DIM}")
        })?;
        expect(op, window != Some(0), || "a window of 0 shows no key to any query".to_owned())
    }
}

/// Attention forward: `o`, and the log-sum-exp of each query's scores.
///
/// # Shapes
/// - q, o: `[queries, heads * head_dim]`, k, v: `[keys or more, kv_heads * head_dim]` bf16, rows on 16 bytes
/// - lse: `[queries * heads]` f32 or longer
///
/// # Errors
/// If the shapes do not match the plan, a matrix is not inside its slice, or a row is not aligned.
pub fn forward<D: Driver>(
    d: &D,
    plan: &Plan<D>,
    h: Heads,
    q: View<'_, D, bf16>,
    k: View<'_, D, bf16>,
    v: View<'_, D, bf16>,
    o: ViewMut<'_, D, bf16>,
    lse: &mut Slice<D, f32>,
) -> Result<()> {
    h.check(OP)?;
    let (queries, keys) = (plan.queries(), plan.keys());
    for (name, view) in [("q", &q), ("k", &k), ("v", &v)] {
        let kv = name != "q";
        let (rows, cols) = if kv { (keys, h.kv_width()) } else { (queries, h.width()) };
        let fits = view.cols == cols && (view.rows == rows || kv && view.rows > rows);
        expect(OP, fits, || format!("{name} [{}, {}] must be [{rows}, {cols}]", view.rows, view.cols))?;
        check_view(view, name)?;
    }
    check_output(&o, "o", queries, h.width())?;
    expect(OP, lse.len() >= queries * h.heads, || {
        format!("{} values of lse for {queries} queries of {} heads", lse.len(), h.heads)
    })?;
    let args = [
        matrix(d, &q),
        matrix(d, &k),
        matrix(d, &v),
        [o.arg(d), Arg::I64(o.ld as i64)],
        [lse.arg(d, 0), Arg::I32(h.heads as i32)],
    ];
    let args = [plan.query_args(d).as_slice(), args.as_flattened(), &tail(h)].concat();
    let kernel = &Instance::of(h.head_dim).forward;
    // SAFETY: every matrix was found inside its slice with the rows and columns that the plan's tiles name, lse holds a
    // value per query and head, and the kernel takes these arguments.
    unsafe { launch(d, kernel, h.heads, plan.query_blocks(), &args) }
}

/// What the backward pass reads.
#[derive(Debug)]
pub struct Inputs<'a, D: Driver> {
    /// `[queries, heads * head_dim]`, as in the forward.
    pub q: View<'a, D, bf16>,
    /// `[keys, kv_heads * head_dim]`, as in the forward.
    pub k: View<'a, D, bf16>,
    /// `[keys, kv_heads * head_dim]`, as in the forward.
    pub v: View<'a, D, bf16>,
    /// `[queries, heads * head_dim]`: the forward's output.
    pub o: View<'a, D, bf16>,
    /// `[queries * heads]` or longer: the forward's log-sum-exp.
    pub lse: &'a Slice<D, f32>,
    /// `[queries, heads * head_dim]`: gradient of `o`.
    pub d_o: View<'a, D, bf16>,
}

/// Where the backward pass writes.
#[derive(Debug)]
pub enum Gradients<'a, D: Driver> {
    /// dq, and dk beside dv, in slices of their own.
    Apart {
        /// `[queries, heads * head_dim]`.
        dq: ViewMut<'a, D, bf16>,
        /// `[keys, 2 * kv_heads * head_dim]`.
        dkv: ViewMut<'a, D, bf16>,
    },
    /// `[rows, (heads + 2 * kv_heads) * head_dim]`: dq, dk and dv side by side, where every row is query and key.
    Fused(ViewMut<'a, D, bf16>),
}

/// Values of scratch that [`backward`] takes.
pub fn backward_scratch(queries: usize, heads: usize) -> usize {
    2 * queries * heads
}

/// Attention backward: the gradients of q, k and v, every row of them.
///
/// # Shapes
/// - those of [`Inputs`] and [`Gradients`], rows on 16 bytes
/// - scratch: [`backward_scratch`] f32 or longer
///
/// # Errors
/// If the shapes do not match the plan, a matrix is not inside its slice, or a row is not aligned.
pub fn backward<D: Driver>(
    d: &D,
    plan: &Plan<D>,
    h: Heads,
    x: Inputs<'_, D>,
    scratch: &mut Slice<D, f32>,
    out: Gradients<'_, D>,
) -> Result<()> {
    h.check(OP)?;
    let (queries, keys) = (plan.queries(), plan.keys());
    for (name, view) in [("q", &x.q), ("k", &x.k), ("v", &x.v), ("o", &x.o), ("do", &x.d_o)] {
        let kv = name == "k" || name == "v";
        let (rows, cols) = if kv { (keys, h.kv_width()) } else { (queries, h.width()) };
        let fits = (view.rows, view.cols) == (rows, cols);
        expect(OP, fits, || format!("{name} [{}, {}] must be [{rows}, {cols}]", view.rows, view.cols))?;
        check_view(view, name)?;
    }
    let len = backward_scratch(queries, h.heads);
    expect(OP, x.lse.len() >= queries * h.heads && scratch.len() >= len, || {
        format!("{} values of lse and {} of scratch for {len} of scratch", x.lse.len(), scratch.len())
    })?;
    // The kernels take each gradient's first value, and the distance between its rows.
    let (dq, dk, dv) = match &out {
        Gradients::Apart { dq, dkv } => {
            check_output(dq, "dq", queries, h.width())?;
            check_output(dkv, "[dk | dv]", keys, 2 * h.kv_width())?;
            ((&*dq.slice, dq.at, dq.ld), (&*dkv.slice, dkv.at, dkv.ld), dkv.at + h.kv_width())
        }
        Gradients::Fused(all) => {
            expect(OP, queries == keys, || format!("one matrix for {queries} queries and {keys} keys"))?;
            check_output(all, "[dq | dk | dv]", keys, h.width() + 2 * h.kv_width())?;
            let dk = all.at + h.width();
            ((&*all.slice, all.at, all.ld), (&*all.slice, dk, all.ld), dk + h.kv_width())
        }
    };
    stats(d, plan, h, &x, scratch)?;

    let inputs = [matrix(d, &x.q), matrix(d, &x.k), matrix(d, &x.v), matrix(d, &x.d_o)];
    let inputs = [inputs.as_flattened(), &[scratch.arg(d, 0), Arg::I32(queries as i32)], &tail(h)].concat();
    let address = |(slice, at, ld): (&Slice<D, bf16>, usize, usize)| [slice.arg(d, at), Arg::I64(ld as i64)];
    let instance = Instance::of(h.head_dim);
    let args = [plan.query_args(d).as_slice(), &inputs, &address(dq)].concat();
    // SAFETY: every matrix was found inside its slice with the rows and columns that the plan's tiles name, scratch
    // holds a pair per query and head, and the kernel takes these arguments.
    unsafe { launch(d, &instance.dq, h.heads, plan.query_blocks(), &args)? };
    let args = [plan.key_args(d).as_slice(), &inputs, &address(dk), &address((dk.0, dv, dk.2))].concat();
    // SAFETY: as above.
    unsafe { launch(d, &instance.dkv, h.kv_heads, plan.key_blocks(), &args) }
}

/// The backward's first pass: (lse · log2 e, rowsum(do ∘ o)) of each query and head into `scratch`.
fn stats<D: Driver>(
    d: &D,
    plan: &Plan<D>,
    h: Heads,
    x: &Inputs<'_, D>,
    scratch: &mut Slice<D, f32>,
) -> Result<()> {
    const THREADS: usize = 256;
    let queries = plan.queries();
    let lanes = (h.head_dim / 8).next_power_of_two();
    let blocks = (queries * h.heads).div_ceil(THREADS / lanes);
    if blocks == 0 {
        return Ok(());
    }
    let blocks = grid("queries and heads", blocks, i32::MAX as usize)?;
    let args = [
        matrix(d, &x.o),
        matrix(d, &x.d_o),
        [x.lse.arg(d, 0), scratch.arg(d, 0)],
        [Arg::I32(queries as i32), Arg::I32(h.heads as i32)],
        [Arg::I32(h.head_dim as i32), Arg::I32(lanes as i32)],
    ];
    let args = args.as_flattened();
    let threads = THREADS as u32;
    let launch = Launch { kernel: "attention_stats", grid: [blocks, 1, 1], threads, shared: 0, args };
    // SAFETY: o and do were found inside their slices, lse holds a value and scratch a pair per query and head, and the
    // kernel takes these arguments.
    unsafe { d.launch(&launch) }
}

fn check_view<D: Driver>(view: &View<'_, D, bf16>, name: &str) -> Result<()> {
    view.check(OP, name, 8)?;
    check_ld(name, view.ld)
}

fn check_output<D: Driver>(view: &ViewMut<'_, D, bf16>, name: &str, rows: usize, cols: usize) -> Result<()> {
    expect(OP, (view.rows, view.cols) == (rows, cols), || {
        format!("{name} [{}, {}] must be [{rows}, {cols}]", view.rows, view.cols)
    })?;
    view.check(OP, name, 8)?;
    check_ld(name, view.ld)
}

fn check_ld(name: &str, ld: usize) -> Result<()> {
    expect(OP, ld < MAX_LD, || format!("the rows of {name} lie {ld} apart, at most {MAX_LD} can be handled"))
}

fn matrix<D: Driver>(d: &D, view: &View<'_, D, bf16>) -> [Arg; 2] {
    [view.arg(d), Arg::I64(view.ld as i64)]
}

/// The arguments that name the shape.
fn tail(h: Heads) -> [Arg; 4] {
    [Arg::I32(h.group() as i32), Arg::I32(h.head_dim as i32), Arg::I32(h.window()), Arg::F32(h.scale())]
}

fn grid(what: &str, count: usize, most: usize) -> Result<u32> {
    expect(OP, count <= most, || format!("{count} blocks of {what}, at most {most} can be handled"))?;
    Ok(count as u32)
}

/// Queues a kernel over all tiles of all heads.
///
/// # Safety
/// As [`Driver::launch`].
unsafe fn launch<D: Driver>(d: &D, kernel: &Kernel, heads: usize, tiles: usize, args: &[Arg]) -> Result<()> {
    if tiles == 0 {
        return Ok(());
    }
    let most = d.limits().shared_per_block;
    expect(OP, kernel.shared <= most, || {
        format!("{} takes {} bytes of shared memory, the device has {most}", kernel.name, kernel.shared)
    })?;
    let grid = [grid("heads", heads, i32::MAX as usize)?, grid("tiles", tiles, 65_535)?, kernel.parts];
    let launch =
        Launch { kernel: kernel.name, grid, threads: kernel.warps * 32, shared: kernel.shared, args };
    // SAFETY: the caller's promise.
    unsafe { d.launch(&launch) }
}
