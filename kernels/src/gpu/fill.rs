//! Random weights (`fill.cu`).

use half::bf16;

use super::driver::{Arg, Driver};
use super::error::{Result, expect};
use super::rows::{Tiling, Wide};
use super::slice::ViewMut;

/// The standard deviation of the sum of four fair bytes: the root of 4 (256² - 1) / 12.
pub const SPREAD: f32 = 147.800_54;

/// Names the values of one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Seed of all tensors.
    pub seed: u64,
    /// Which tensor.
    pub tensor: u32,
}

/// out = random values with mean 0 and standard deviation `std`, symmetric and at most 3.5 of it large. Value `i`, row by
/// row, depends on `key` and `i` alone, and has the same bits as the CPU backend's rounded to bf16.
///
/// # Shapes
/// - out: `[rows, cols]` bf16
///
/// # Errors
/// If the matrix is not inside its slice or `std` is not finite.
pub fn fill_random<D: Driver>(d: &D, key: Key, std: f32, out: ViewMut<'_, D, bf16>) -> Result<()> {
    const OP: &str = "fill_random";
    expect(OP, std.is_finite(), || format!("a standard deviation of {std}"))?;
    out.check(OP, "out", 1)?;
    if out.rows == 0 || out.cols == 0 {
        return Ok(());
    }
    let tiling = Tiling::new(OP, out.rows, out.cols, out.is_wide(), 1)?;
    let args = [
        Arg::U32(key.seed as u32),
        Arg::U32((key.seed >> 32) as u32),
        Arg::U32(key.tensor),
        Arg::F32(std / SPREAD),
        out.arg(d),
        Arg::I64(out.ld as i64),
    ];
    // SAFETY: the kernel writes the matrix, which was found inside its slice, and takes these arguments.
    unsafe { tiling.launch(d, ["fill_random_8", "fill_random_1"], &args) }
}
