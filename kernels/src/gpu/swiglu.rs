//! SwiGLU, forward and backward (`swiglu.cu`).

use half::bf16;

use super::driver::{Arg, Driver};
use super::error::{Result, expect};
use super::rows::{Tiling, Wide};
use super::slice::{View, ViewMut};

/// Rows that one thread of the forward works on.
const REPEAT: usize = 2;

/// h = bf16(silu(gate)) · up.
///
/// # Shapes
/// - `gate_up`: `[rows, 2 f]`, gate first; h: `[rows, f]`; bf16
///
/// # Errors
/// If the shapes do not match or a matrix is not inside its slice.
pub fn swiglu<D: Driver>(d: &D, gate_up: View<'_, D, bf16>, h: ViewMut<'_, D, bf16>) -> Result<()> {
    const OP: &str = "swiglu";
    shapes(OP, (gate_up.rows, gate_up.cols), (h.rows, h.cols))?;
    gate_up.check(OP, "gate_up", 1)?;
    h.check(OP, "h", 1)?;
    if h.rows == 0 || h.cols == 0 {
        return Ok(());
    }
    let tiling = Tiling::new(OP, h.rows, h.cols, gate_up.is_wide() && h.is_wide(), REPEAT)?;
    let args = [gate_up.arg(d), Arg::I64(gate_up.ld as i64), h.arg(d), Arg::I64(h.ld as i64)];
    // SAFETY: both matrices were found inside their slices and match, and the kernel takes these arguments.
    unsafe { tiling.launch(d, ["swiglu_8", "swiglu_1"], &args) }
}

/// Turns `gate_up` into its own gradient and makes `h` again, the same bits as the forward's.
///
/// # Shapes
/// - dh, h: `[rows, f]`, `gate_up`: `[rows, 2 f]`, gate first; bf16
///
/// # Errors
/// If the shapes do not match or a matrix is not inside its slice.
pub fn swiglu_backward<D: Driver>(
    d: &D,
    dh: View<'_, D, bf16>,
    gate_up: ViewMut<'_, D, bf16>,
    h: ViewMut<'_, D, bf16>,
) -> Result<()> {
    const OP: &str = "swiglu_backward";
    shapes(OP, (gate_up.rows, gate_up.cols), (h.rows, h.cols))?;
    expect(OP, dh.rows == h.rows && dh.cols == h.cols, || {
        format!("dh [{}, {}], h [{}, {}]", dh.rows, dh.cols, h.rows, h.cols)
    })?;
    dh.check(OP, "dh", 1)?;
    gate_up.check(OP, "gate_up", 1)?;
    h.check(OP, "h", 1)?;
    if h.rows == 0 || h.cols == 0 {
        return Ok(());
    }
    let wide = dh.is_wide() && gate_up.is_wide() && h.is_wide();
    let tiling = Tiling::new(OP, h.rows, h.cols, wide, 1)?;
    let args = [
        dh.arg(d),
        Arg::I64(dh.ld as i64),
        gate_up.arg(d),
        Arg::I64(gate_up.ld as i64),
        h.arg(d),
        Arg::I64(h.ld as i64),
    ];
    // SAFETY: the matrices were found inside their slices and match, and the kernel takes these arguments.
    unsafe { tiling.launch(d, ["swiglu_backward_8", "swiglu_backward_1"], &args) }
}

fn shapes(op: &'static str, gate_up: (usize, usize), h: (usize, usize)) -> Result<()> {
    expect(op, gate_up.0 == h.0 && gate_up.1 == 2 * h.1, || {
        format!("gate_up [{}, {}], h [{}, {}]", gate_up.0, gate_up.1, h.0, h.1)
    })
}
