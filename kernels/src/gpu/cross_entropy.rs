//! Cross-entropy of rows of logits, turned into their gradient in place (`cross_entropy.cu`).

use half::bf16;

use super::driver::{Arg, Driver, Launch};
use super::error::{Result, expect};
use super::gemm::{Factor, gemm};
use super::rows::grid;
use super::slice::{Slice, View, ViewMut};

/// Bytes of shared memory that a sum over a block takes, before those of the row.
const SCRATCH: usize = 128;
/// Values of a piece: 16 bytes.
const PIECE: usize = 8;
/// From this vocabulary on a block has 1024 threads: two such rows do not fit one multiprocessor anyway.
const LONG: usize = 57 << 10;

/// losses = -ln softmax(logits)\[target\] and, with `weight`, logits = (softmax(logits) - onehot(target)) · weight.
///
/// Row `i` of the logits belongs to value `at + i` of `targets` and `losses`. Without `weight` the logits are left as
/// they are. A row with a NaN or an infinity above zero gets NaN for its loss and its gradient, and so does one whose
/// target is not below the vocabulary: the targets lie on the device, so that the caller checks them where the host
/// knows them.
///
/// # Shapes
/// - logits: `[rows, vocab]` bf16; targets, losses: `[at + rows]` or longer
///
/// # Errors
/// If the shapes do not match or the logits are not inside their slice.
pub fn cross_entropy<D: Driver>(
    d: &D,
    logits: ViewMut<'_, D, bf16>,
    targets: &Slice<D, u32>,
    weight: Option<f32>,
    losses: &mut Slice<D, f32>,
    at: usize,
) -> Result<()> {
    const OP: &str = "cross_entropy";
    let (rows, vocab) = (logits.rows, logits.cols);
    let fits = |len: usize| at.checked_add(rows).is_some_and(|end| end <= len);
    expect(OP, fits(targets.len()) && fits(losses.len()), || {
        format!("{rows} rows from {at} on, targets [{}], losses [{}]", targets.len(), losses.len())
    })?;
    expect(OP, vocab > 0 || rows == 0, || "rows of no logits have no loss".into())?;
    logits.check(OP, "logits", 1)?;
    if rows == 0 {
        return Ok(());
    }
    let blocks = grid(OP, rows, vocab, rows)?;
    let aligned = logits.at.is_multiple_of(PIECE) && (rows == 1 || logits.ld.is_multiple_of(PIECE));
    let pieces = if aligned { vocab / PIECE } else { 0 };
    let room = (d.limits().shared_per_block as usize).saturating_sub(SCRATCH) / 16;
    let kept = if weight.is_some() { pieces.min(room) } else { 0 };
    let most = if vocab < LONG { 512 } else { 1024 };
    let args = [
        logits.arg(d),
        Arg::I64(logits.ld as i64),
        targets.arg(d, at),
        Arg::F32(weight.unwrap_or(0.0)),
        losses.arg(d, at),
        Arg::I32(vocab as i32),
        Arg::I32(pieces as i32),
        Arg::I32(kept as i32),
    ];
    let launch = Launch {
        kernel: if weight.is_some() { "cross_entropy_gradient" } else { "cross_entropy_loss" },
        grid: [blocks, 1, 1],
        // Four pieces for every thread.
        threads: vocab.div_ceil(4 * PIECE).next_multiple_of(32).min(most) as u32,
        shared: (SCRATCH + kept * 16) as u32,
        args: &args,
    };
    // SAFETY: the logits were found inside their slice, there is a target and a loss for every row, rows are cut into
    // pieces only where they are aligned, shared memory has room for the pieces kept, and the kernel takes these
    // arguments.
    unsafe { d.launch(&launch) }
}

/// [`cross_entropy`] of logits = x · headᵀ, in chunks of rows, and, with `weight`, its gradient by x in the place of x.
///
/// The logits are rounded to bf16 and exist for one chunk at a time, in the scratch `logits`: with
/// `ld = vocab.next_multiple_of(8)`, which keeps rows at multiples of 16 bytes, a scratch of `rows · ld` values makes
/// chunks of up to `rows` rows. It must hold one row, so `ld` values; more than `n · ld` are not used. What it holds
/// afterwards is of no use. Without `weight` x is left as it is.
///
/// # Shapes
/// - x: `[n, dm]`, head: `[vocab, dm]`, logits: flat, bf16; targets: `[n]`, losses: `[n]` or longer
///
/// # Errors
/// If the shapes do not match, a matrix is not inside its slice or the scratch is too short for a row.
pub fn linear_cross_entropy<D: Driver>(
    d: &D,
    x: ViewMut<'_, D, bf16>,
    head: View<'_, D, bf16>,
    targets: &Slice<D, u32>,
    weight: Option<f32>,
    losses: &mut Slice<D, f32>,
    logits: &mut Slice<D, bf16>,
) -> Result<()> {
    const OP: &str = "linear_cross_entropy";
    let (n, vocab) = (x.rows, head.rows);
    expect(OP, x.cols == head.cols, || format!("x [{n}, {}], head [{vocab}, {}]", x.cols, head.cols))?;
    expect(OP, targets.len() >= n && losses.len() >= n, || {
        format!("{n} rows, targets [{}], losses [{}]", targets.len(), losses.len())
    })?;
    expect(OP, vocab > 0 || n == 0, || "rows of no logits have no loss".into())?;
    x.check(OP, "x", 1)?;
    head.check(OP, "head", 1)?;
    if n == 0 {
        return Ok(());
    }
    let ld = vocab.next_multiple_of(PIECE);
    let most = logits.len() / ld;
    expect(OP, most > 0, || format!("a scratch of {} values for rows of {ld}", logits.len()))?;
    // Chunks of about one size: a short one at the end would cost almost as much as a long one.
    let rows = n.div_ceil(n.div_ceil(most));
    for first in (0..n).step_by(rows) {
        let rows = rows.min(n - first);
        let at = x.at + first * x.ld;
        let chunk = View { slice: &*x.slice, at, rows, cols: x.cols, ld: x.ld };
        gemm(d, 1.0, Factor::new(chunk), Factor::new(head).t(), 0.0, ViewMut::new(logits, rows, vocab, ld))?;
        cross_entropy(d, ViewMut::new(logits, rows, vocab, ld), targets, weight, losses, first)?;
        if weight.is_some() {
            let dx = ViewMut { slice: &mut *x.slice, at, rows, cols: x.cols, ld: x.ld };
            gemm(d, 1.0, Factor::new(View::new(logits, rows, vocab, ld)), Factor::new(head), 0.0, dx)?;
        }
    }
    Ok(())
}
