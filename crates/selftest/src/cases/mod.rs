//! The cases: which operation at which shapes.

mod attention;
mod loss;
mod memory;
mod norms;
mod optimizer;
mod products;
mod rows;

use tunesmith_ops::Kernels;

use crate::lab::Lab;

/// Every operation. Memory comes first: the others are only as good as it.
pub(crate) fn all<K: Kernels>(lab: &mut Lab<'_, K>) {
    memory::all(lab);
    rows::moves(lab);
    rows::named(lab);
    rows::maps(lab);
    products::all(lab);
    norms::all(lab);
    attention::all(lab);
    loss::all(lab);
    optimizer::all(lab);
}
