//! RMSNorm, forward and backward (`rms_norm.cu`).

use half::bf16;

use super::driver::{Arg, Driver, Launch};
use super::error::{Result, expect};
use super::rows::{Wide, grid};
use super::slice::{Slice, View, ViewMut};

/// Bytes of shared memory that a sum over a block takes.
const SCRATCH: u32 = 128;

/// y = bf16(x · rstd) ∘ w with rstd = 1 / √(mean(x²) + eps), and rstd. A row whose squares overflow f32 gets NaN.
///
/// # Shapes
/// - x, y: `[rows, d]`, w: `[d]` bf16; rstd: `[rows]` f32 or longer
///
/// # Errors
/// If the shapes do not match or a matrix is not inside its slice.
pub fn rms_norm<D: Driver>(
    d: &D,
    x: View<'_, D, bf16>,
    w: &Slice<D, bf16>,
    eps: f32,
    y: ViewMut<'_, D, bf16>,
    rstd: &mut Slice<D, f32>,
) -> Result<()> {
    const OP: &str = "rms_norm";
    let (rows, cols) = (x.rows, x.cols);
    same(OP, (rows, cols), "y", (y.rows, y.cols))?;
    lengths(OP, (rows, cols), w.len(), rstd.len())?;
    x.check(OP, "x", 1)?;
    y.check(OP, "y", 1)?;
    if rows == 0 || cols == 0 {
        return Ok(());
    }
    let plan = Plan::new(OP, rows, cols, x.is_wide() && y.is_wide())?;
    let args = [
        x.arg(d),
        Arg::I64(x.ld as i64),
        w.arg(d, 0),
        Arg::F32(eps),
        y.arg(d),
        Arg::I64(y.ld as i64),
        rstd.arg(d, 0),
        Arg::I32(rows as i32),
        Arg::I32(cols as i32),
    ];
    let launch = plan.launch(FORWARD, &args);
    // SAFETY: the matrices were found inside their slices, w has a value per column and rstd one per row; the kernel
    // takes these arguments.
    unsafe { d.launch(&launch) }
}

/// dx += gradient of [`rms_norm`] by x; `dx` holds the residual's gradient before. With `y`, the forward's output is
/// written again, the same bits as before.
///
/// # Shapes
/// - dy, x, dx, y: `[rows, d]`, w: `[d]` bf16; rstd: `[rows]` f32 or longer, from the forward
///
/// # Errors
/// If the shapes do not match or a matrix is not inside its slice.
pub fn rms_norm_backward<D: Driver>(
    d: &D,
    dy: View<'_, D, bf16>,
    x: View<'_, D, bf16>,
    w: &Slice<D, bf16>,
    rstd: &Slice<D, f32>,
    dx: ViewMut<'_, D, bf16>,
    y: Option<ViewMut<'_, D, bf16>>,
) -> Result<()> {
    const OP: &str = "rms_norm_backward";
    let (rows, cols) = (x.rows, x.cols);
    same(OP, (rows, cols), "dy", (dy.rows, dy.cols))?;
    same(OP, (rows, cols), "dx", (dx.rows, dx.cols))?;
    lengths(OP, (rows, cols), w.len(), rstd.len())?;
    dy.check(OP, "dy", 1)?;
    x.check(OP, "x", 1)?;
    dx.check(OP, "dx", 1)?;
    let mut wide = dy.is_wide() && x.is_wide() && dx.is_wide();
    let mut out = [Arg::Address(0), Arg::I64(0)];
    if let Some(y) = y {
        same(OP, (rows, cols), "y", (y.rows, y.cols))?;
        y.check(OP, "y", 1)?;
        wide &= y.is_wide();
        out = [y.arg(d), Arg::I64(y.ld as i64)];
    }
    if rows == 0 || cols == 0 {
        return Ok(());
    }
    let plan = Plan::new(OP, rows, cols, wide)?;
    let args = [
        dy.arg(d),
        Arg::I64(dy.ld as i64),
        x.arg(d),
        Arg::I64(x.ld as i64),
        w.arg(d, 0),
        rstd.arg(d, 0),
        dx.arg(d),
        Arg::I64(dx.ld as i64),
        out[0],
        out[1],
        Arg::I32(rows as i32),
        Arg::I32(cols as i32),
    ];
    let launch = plan.launch(BACKWARD, &args);
    // SAFETY: the matrices were found inside their slices, w has a value per column and rstd one per row; an address of
    // 0 stands for no y; the kernel takes these arguments.
    unsafe { d.launch(&launch) }
}

fn same(op: &'static str, (rows, cols): (usize, usize), name: &str, other: (usize, usize)) -> Result<()> {
    expect(op, other == (rows, cols), || format!("x [{rows}, {cols}], {name} [{}, {}]", other.0, other.1))
}

fn lengths(op: &'static str, (rows, cols): (usize, usize), w: usize, rstd: usize) -> Result<()> {
    expect(op, w == cols && rstd >= rows, || format!("x [{rows}, {cols}], w [{w}], rstd [{rstd}]"))
}

/// The kernels of one direction, in the order of [`Plan::kernel`].
type Kernels = [&'static str; 7];

const FORWARD: Kernels = [
    "rms_norm_warp_1",
    "rms_norm_warp_2",
    "rms_norm_warp_4",
    "rms_norm_block_1",
    "rms_norm_block_2",
    "rms_norm_block_4",
    "rms_norm_any",
];
const BACKWARD: Kernels = [
    "rms_norm_backward_warp_1",
    "rms_norm_backward_warp_2",
    "rms_norm_backward_warp_4",
    "rms_norm_backward_block_1",
    "rms_norm_backward_block_2",
    "rms_norm_backward_block_4",
    "rms_norm_backward_any",
];

/// Which kernel, and on how many threads.
struct Plan {
    kernel: usize,
    threads: u32,
    blocks: u32,
}

impl Plan {
    fn new(op: &'static str, rows: usize, cols: usize, wide: bool) -> Result<Self> {
        // The smallest kernel whose threads can hold a row in 16-byte pieces.
        let pieces = cols / 8;
        let (kernel, threads, rows_per_block) = match pieces {
            _ if !wide => (6, 256, 1),
            ..=32 => (0, 256, 8),
            33..=64 => (1, 256, 8),
            65..=128 => (2, 256, 8),
            129..=256 => (3, pieces, 1),
            257..=1024 => (4, pieces.div_ceil(2), 1),
            1025..=2048 => (5, pieces.div_ceil(4), 1),
            _ => (6, 256, 1),
        };
        let blocks = grid(op, rows, cols, rows.div_ceil(rows_per_block))?;
        Ok(Self { kernel, threads: threads.next_multiple_of(32) as u32, blocks })
    }

    fn launch<'a>(&self, kernels: Kernels, args: &'a [Arg]) -> Launch<'a> {
        let shared = if self.kernel < 3 { 0 } else { SCRATCH };
        Launch {
            kernel: kernels[self.kernel],
            grid: [self.blocks, 1, 1],
            threads: self.threads,
            shared,
            args,
        }
    }
}
