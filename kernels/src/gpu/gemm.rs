//! Matrix products (cuBLASLt on a GPU).

use half::bf16;

use super::driver::{Driver, Gemm, Operand};
use super::error::{Result, expect};
use super::slice::{Element, View, ViewMut};

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
    let addend = c.slice.address(d, c.at);
    // SAFETY: C is added to in place.
    unsafe { product(d, "gemm", (alpha, beta), a, b, addend, c) }
}

/// C = A · B + D, for a D that is kept: the residual stream goes on without a copy of its own.
///
/// # Shapes
/// - a: `[m, k]`, b: `[k, n]` bf16; onto, c: `[m, n]` bf16 or f32, with one leading dimension
///
/// # Errors
/// As [`gemm`].
pub fn gemm_onto<D: Driver, T: Output>(
    d: &D,
    a: Factor<'_, D>,
    b: Factor<'_, D>,
    onto: View<'_, D, T>,
    c: ViewMut<'_, D, T>,
) -> Result<()> {
    const OP: &str = "gemm_onto";
    expect(OP, (onto.rows, onto.cols, onto.ld) == (c.rows, c.cols, c.ld), || {
        format!(
            "[{}, {}] (ld {}) added to [{}, {}] (ld {})",
            onto.rows, onto.cols, onto.ld, c.rows, c.cols, c.ld
        )
    })?;
    onto.check(OP, "onto", 1)?;
    // SAFETY: D was found inside its slice and has C's shape; C, borrowed mutably, does not overlap it.
    unsafe { product(d, OP, (1.0, 1.0), a, b, onto.slice.address(d, onto.at), c) }
}

/// Checks a product and queues it.
///
/// # Safety
/// A matrix of C's shape and leading dimension must lie at `addend`, and be C or apart from it.
unsafe fn product<D: Driver, T: Output>(
    d: &D,
    op: &'static str,
    (alpha, beta): (f32, f32),
    a: Factor<'_, D>,
    b: Factor<'_, D>,
    addend: u64,
    c: ViewMut<'_, D, T>,
) -> Result<()> {
    let ((m, k), (depth, n)) = (a.shape(), b.shape());
    expect(op, depth == k && c.rows == m && c.cols == n, || {
        format!("[{m}, {k}] x [{depth}, {n}] into [{}, {}]", c.rows, c.cols)
    })?;
    a.view.check(op, "a", 1)?;
    b.view.check(op, "b", 1)?;
    c.check(op, "c", 1)?;
    if m == 0 || n == 0 {
        return Ok(());
    }
    let out = Operand { address: c.slice.address(d, c.at), ld: c.ld, transposed: false };
    let (a, b) = (a.operand(d), b.operand(d));
    let gemm = Gemm { m, n, k, alpha, beta, a, b, c: out, addend, full: T::FULL };
    // SAFETY: the operands and C were found inside their slices, and C, borrowed mutably, overlaps neither; the caller
    // vouches for the addend.
    unsafe { d.gemm(&gemm) }
}
