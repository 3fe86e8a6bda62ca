//! From this crate's views to those of the launchers.

use tunesmith_kernels::gpu::gemm::Factor;
use tunesmith_kernels::gpu::{Driver, Element, Slice, View, ViewMut, bf16};

use crate::error::expect;
use crate::{Error, Mat, MatMut};

/// A matrix that the operation reads as it is stored.
pub(super) fn view<'a, D: Driver, T: Element>(
    op: &'static str,
    m: Mat<'a, Slice<D, T>>,
) -> Result<View<'a, D, T>, Error> {
    expect(op, !m.transposed, || "a transposed operand".into())?;
    Ok(stored(m))
}

fn stored<D: Driver, T>(m: Mat<'_, Slice<D, T>>) -> View<'_, D, T> {
    View { slice: m.buf, at: m.at, rows: m.rows, cols: m.cols, ld: m.ld }
}

/// A factor of a product, transposed or not.
pub(super) fn factor<D: Driver>(m: Mat<'_, Slice<D, bf16>>) -> Factor<'_, D> {
    let factor = Factor::new(stored(m));
    if m.transposed { factor.t() } else { factor }
}

pub(super) fn view_mut<D: Driver, T>(m: MatMut<'_, Slice<D, T>>) -> ViewMut<'_, D, T> {
    ViewMut { slice: m.buf, at: m.at, rows: m.rows, cols: m.cols, ld: m.ld }
}

/// Host values in the storage type.
pub(super) fn host(values: &[f32]) -> Vec<bf16> {
    values.iter().map(|&v| bf16::from_f32(v)).collect()
}
