//! Rotary position embedding, forward and backward (`rope.cu`).

use half::bf16;

use super::driver::{Arg, Driver, Launch};
use super::error::{Result, expect};
use super::rows::{Wide, grid};
use super::slice::{Slice, ViewMut};

/// Threads of a block, at most.
const THREADS: usize = 256;
/// Heads that one thread turns.
const HEADS: usize = 4;

/// cos and sin of every position and frequency, on the device.
#[derive(Debug)]
pub struct Table<'a, D: Driver> {
    /// `[positions, half]`.
    pub cos: &'a Slice<D, f32>,
    /// `[positions, half]`.
    pub sin: &'a Slice<D, f32>,
    /// Half the head size.
    pub half: usize,
}

impl<D: Driver> Clone for Table<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Driver> Copy for Table<'_, D> {}

/// Rotates every head of every row in place, row `t` by `positions[t]`; `inverse` rotates back, which is the backward.
///
/// q and k side by side are one matrix of `heads + kv_heads` heads. The positions lie on the device; `largest` is the
/// largest of them, which the caller knows. A position that has no row in the table all the same gives a row of NaN.
///
/// # Shapes
/// - x: `[rows, heads * head_dim]` bf16, positions: `[rows]` or longer, table: `[positions, head_dim / 2]` f32
///
/// # Errors
/// If the shapes do not match, the matrix is not inside its slice, or `largest` has no row in the table.
pub fn rope<D: Driver>(
    d: &D,
    x: ViewMut<'_, D, bf16>,
    positions: &Slice<D, i32>,
    largest: usize,
    table: Table<'_, D>,
    inverse: bool,
) -> Result<()> {
    const OP: &str = "rope";
    let half = table.half;
    expect(OP, half > 0 && x.cols.is_multiple_of(2 * half), || {
        format!("{} columns are not heads of {}", x.cols, 2 * half)
    })?;
    expect(OP, table.cos.len() == table.sin.len() && table.cos.len().is_multiple_of(half), || {
        format!("a table of {} cosines and {} sines, {half} per position", table.cos.len(), table.sin.len())
    })?;
    expect(OP, positions.len() >= x.rows, || format!("{} positions for {} rows", positions.len(), x.rows))?;
    x.check(OP, "x", 1)?;
    if x.rows == 0 || x.cols == 0 {
        return Ok(());
    }
    let known = table.cos.len() / half;
    expect(OP, largest < known, || format!("position {largest} with a table of {known} positions"))?;

    let wide = x.is_wide() && half.is_multiple_of(8);
    let heads = x.cols / (2 * half);
    let items = half / if wide { 8 } else { 1 } * heads.div_ceil(HEADS);
    let lanes = items.div_ceil(items.div_ceil(THREADS));
    let per_block = THREADS / lanes;
    let blocks = grid(OP, x.rows.max(known), x.cols, x.rows.div_ceil(per_block))?;
    let args = [
        x.arg(d),
        Arg::I64(x.ld as i64),
        positions.arg(d, 0),
        table.cos.arg(d, 0),
        table.sin.arg(d, 0),
        Arg::I32(known as i32),
        Arg::I32(x.rows as i32),
        Arg::I32(heads as i32),
        Arg::I32(half as i32),
        Arg::F32(if inverse { -1.0 } else { 1.0 }),
        Arg::I32(lanes as i32),
    ];
    let launch = Launch {
        kernel: if wide { "rope_8" } else { "rope_1" },
        grid: [blocks, 1, 1],
        threads: (lanes * per_block).next_multiple_of(32) as u32,
        shared: 0,
        args: &args,
    };
    // SAFETY: x was found inside its slice, there is a position for every row, the kernel reads no row that the table
    // does not have, and it takes these arguments.
    unsafe { d.launch(&launch) }
}
