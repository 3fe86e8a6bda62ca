//! Matrix products (cuBLASLt on a GPU).

use half::bf16;

use super::driver::{Driver, Gemm, Operand};
use super::error::{Result, expect};
use super::slice::{Element, Slice, View, ViewMut};

/// What a product may be written to: bf16, or f32 for LoRA gradients.
pub trait Output: Element {
    /// Whether it is f32.
    const FULL: bool;
}

impl Output for bf16 {
    const FULL: bool = false;
}

impl Output for f32 {
    const FULL: bool = true;
}

/// A matrix as an operand, or its transpose.
#[derive(Debug)]
pub struct Factor<'a, D: Driver> {
    view: View<'a, D, bf16>,
    transposed: bool,
}

impl<'a, D: Driver> Factor<'a, D> {
    /// The matrix as it is stored.
    pub fn new(view: View<'a, D, bf16>) -> Self {
        Self { view, transposed: false }
    }

    /// The transpose, without moving anything.
    #[must_use]
    pub fn t(self) -> Self {
        Self { transposed: !self.transposed, ..self }
    }

    fn shape(&self) -> (usize, usize) {
        if self.transposed { (self.view.cols, self.view.rows) } else { (self.view.rows, self.view.cols) }
    }

    fn operand(&self, d: &D) -> Operand {
        let address = self.view.slice.address(d, self.view.at);
        Operand { address, ld: self.view.ld, transposed: self.transposed }
    }
}

/// C = alpha · A · B + beta · C with f32 sums. With `beta` 0, C is not read.
///
/// # Shapes
/// - a: `[m, k]`, b: `[k, n]` bf16; c: `[m, n]` bf16 or f32
///
/// # Errors
/// If the shapes do not match or a matrix is not inside its slice.
pub fn gemm<D: Driver, T: Output>(
    d: &D,
    alpha: f32,
    a: Factor<'_, D>,
    b: Factor<'_, D>,
    beta: f32,
    c: ViewMut<'_, D, T>,
) -> Result<()> {
    let ((m, k), (depth, n)) = (a.shape(), b.shape());
    expect("gemm", depth == k && c.rows == m && c.cols == n, || {
        format!("[{m}, {k}] x [{depth}, {n}] into [{}, {}]", c.rows, c.cols)
    })?;
    a.view.check("gemm", "a", 1)?;
    b.view.check("gemm", "b", 1)?;
    c.check("gemm", "c", 1)?;
    if m == 0 || n == 0 {
        return Ok(());
    }
    let out = Operand { address: address(d, c.slice, c.at), ld: c.ld, transposed: false };
    let gemm = Gemm { m, n, k, alpha, beta, a: a.operand(d), b: b.operand(d), c: out, full: T::FULL };
    // SAFETY: the three matrices were found inside their slices, and C, borrowed mutably, overlaps neither operand.
    unsafe { d.gemm(&gemm) }
}

fn address<D: Driver, T: Element>(d: &D, slice: &Slice<D, T>, at: usize) -> u64 {
    slice.address(d, at)
}
