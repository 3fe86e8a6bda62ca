//! The norm of a flat buffer, and the factor that clips it (`norm.cu`).

use super::driver::{Arg, Driver, Launch};
use super::error::{Result, expect};
use super::slice::Slice;

/// Values of a guard: 1 as long as all that it has seen was finite, then 0 until somebody writes 1 again.
pub const GUARD: usize = 1;
/// Partial sums that [`norm`] needs room for, whatever the length.
pub const PARTIALS: usize = 512;
/// What [`norm`] puts out: the norm, the clip factor, and 1 if the norm is finite, else 0.
pub const OUT: usize = 3;

const THREADS: usize = 256;
/// Values that a thread sums at a time.
const RUN: usize = 16;

/// out = `[norm, factor, finite]` with norm = √(Σ x²), right to 1e-6 at every magnitude.
///
/// factor is `min(1, max_norm / (norm + 1e-6))`, or 1 without `max_norm`. finite is 1, or 0 where the norm is NaN or
/// infinite, as one such value in x makes it. All of it stays on the device: nothing waits.
///
/// # Shapes
/// - x: `[n]` f32; partials: [`PARTIALS`] or longer, f64; out: [`OUT`] or longer, f32
///
/// # Errors
/// If there is not enough room in `partials` or `out`, or `max_norm` is not above 0.
pub fn norm<D: Driver>(
    d: &D,
    x: &Slice<D, f32>,
    max_norm: Option<f32>,
    partials: &mut Slice<D, f64>,
    out: &mut Slice<D, f32>,
) -> Result<()> {
    queue(d, x, max_norm, None, partials, out)
}

/// [`norm`] whose finite is 1 only where the guard has seen nothing else before; a norm that is not finite trips it.
///
/// # Shapes
/// - guard: [`GUARD`] or longer, f32; the others as for [`norm`]
///
/// # Errors
/// As [`norm`], and without a guard.
pub fn guarded<D: Driver>(
    d: &D,
    x: &Slice<D, f32>,
    max_norm: Option<f32>,
    guard: &mut Slice<D, f32>,
    partials: &mut Slice<D, f64>,
    out: &mut Slice<D, f32>,
) -> Result<()> {
    expect("norm", guard.len() >= GUARD, || format!("a guard of {} values", guard.len()))?;
    queue(d, x, max_norm, Some(guard), partials, out)
}

/// Trips the guard where one of the first `n` losses is not finite.
///
/// # Shapes
/// - losses: `[n]` or longer, guard: [`GUARD`] or longer, f32
///
/// # Errors
/// If there are not as many losses, or there is no guard.
pub fn watch<D: Driver>(d: &D, losses: &Slice<D, f32>, n: usize, guard: &mut Slice<D, f32>) -> Result<()> {
    const OP: &str = "watch";
    expect(OP, losses.len() >= n, || format!("{n} losses of {}", losses.len()))?;
    expect(OP, guard.len() >= GUARD, || format!("a guard of {} values", guard.len()))?;
    if n == 0 {
        return Ok(());
    }
    let args = [losses.arg(d, 0), Arg::I64(n as i64), guard.arg(d, 0)];
    let (threads, shared) = (n.next_multiple_of(32).min(1024) as u32, 32 * size_of::<f32>() as u32);
    let launch = Launch { kernel: "norm_watch", grid: [1, 1, 1], threads, shared, args: &args };
    // SAFETY: the kernel reads n losses, writes one value of the guard, and takes these arguments.
    unsafe { d.launch(&launch) }
}

fn queue<D: Driver>(
    d: &D,
    x: &Slice<D, f32>,
    max_norm: Option<f32>,
    guard: Option<&mut Slice<D, f32>>,
    partials: &mut Slice<D, f64>,
    out: &mut Slice<D, f32>,
) -> Result<()> {
    const OP: &str = "norm";
    expect(OP, partials.len() >= PARTIALS, || format!("{} partial sums of {PARTIALS}", partials.len()))?;
    expect(OP, out.len() >= OUT, || format!("room for {} results of {OUT}", out.len()))?;
    let limit = max_norm.unwrap_or(f32::INFINITY);
    expect(OP, limit > 0.0, || format!("a largest norm of {limit} is not above 0"))?;
    // From the length alone, so that the order of the sum is the same on every card.
    let blocks = x.len().div_ceil(THREADS * RUN).min(PARTIALS);
    let scratch = 32 * size_of::<f64>() as u32;
    if blocks > 0 {
        let args = [x.arg(d, 0), Arg::I64(x.len() as i64), partials.arg(d, 0)];
        let grid = [blocks as u32, 1, 1];
        let launch =
            Launch { kernel: "norm_partials", grid, threads: THREADS as u32, shared: scratch, args: &args };
        // SAFETY: the kernel reads the slice, writes one partial sum per block, which there is room for, and takes
        // these arguments.
        unsafe { d.launch(&launch) }?;
    }
    let guard = guard.map_or(Arg::Address(0), |guard| guard.arg(d, 0));
    let args = [partials.arg(d, 0), Arg::I32(blocks as i32), Arg::F32(limit), guard, out.arg(d, 0)];
    let threads = PARTIALS as u32;
    let launch = Launch { kernel: "norm_finish", grid: [1, 1, 1], threads, shared: scratch, args: &args };
    // SAFETY: the kernel reads `blocks` partial sums, writes three values and those of a guard that is there, and takes
    // these arguments.
    unsafe { d.launch(&launch) }
}
