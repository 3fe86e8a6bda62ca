//! Matrix products.

use super::dot;

/// A stored matrix of a product.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Factor<'a> {
    pub(crate) values: &'a [f32],
    /// Stored columns.
    pub(crate) cols: usize,
    pub(crate) transposed: bool,
}

impl Factor<'_> {
    fn at(&self, row: usize, col: usize) -> f64 {
        let (row, col) = if self.transposed { (col, row) } else { (row, col) };
        f64::from(self.values[row * self.cols + col])
    }
}

/// alpha Σ a b + beta c at some places of the product; `k` is its depth and `c` has `n` columns.
pub(crate) fn product(
    (alpha, beta): (f32, f32),
    (a, b): (Factor<'_>, Factor<'_>),
    c: &[f32],
    (n, k): (usize, usize),
    places: &[(usize, usize)],
) -> Vec<f64> {
    let one = |&(i, j): &(usize, usize)| {
        let sum = dot((0..k).map(|t| a.at(i, t)), (0..k).map(|t| b.at(t, j)));
        // With a beta of zero c is not read, whatever it holds.
        let kept = if beta == 0.0 { 0.0 } else { f64::from(beta) * f64::from(c[i * n + j]) };
        f64::from(alpha) * sum + kept
    };
    places.iter().map(one).collect()
}

/// The places of a product that are compared: all of a small one; of a large one whole rows and whole columns at the
/// ends and beside the edges of tiles.
pub(crate) fn places((m, n, k): (usize, usize, usize)) -> Vec<(usize, usize)> {
    if m * n * k <= 1 << 22 {
        return (0..m).flat_map(|i| (0..n).map(move |j| (i, j))).collect();
    }
    let edges = |len: usize| [0, 127.min(len - 1), 128.min(len - 1), len - 1];
    let rows = edges(m).into_iter().flat_map(|i| (0..n).map(move |j| (i, j)));
    let cols = edges(n).into_iter().flat_map(|j| (0..m).map(move |i| (i, j)));
    rows.chain(cols).collect()
}
