//! Every operation written a second time, in f64 and plain loops, from its formula: nothing here is shared with a backend.

pub(crate) mod attention;
pub(crate) mod loss;
pub(crate) mod norms;
pub(crate) mod optimizer;
pub(crate) mod products;
pub(crate) mod rows;

/// Σ a b, in eight sums: an order of its own, which in f64 makes no difference that shows.
pub(crate) fn dot(a: impl ExactSizeIterator<Item = f64>, b: impl ExactSizeIterator<Item = f64>) -> f64 {
    let mut sums = [0.0; 8];
    for (i, (a, b)) in a.zip(b).enumerate() {
        sums[i % 8] += a * b;
    }
    sums.iter().sum()
}

/// The values as f64.
pub(crate) fn wide(values: &[f32]) -> impl ExactSizeIterator<Item = f64> + '_ {
    values.iter().map(|&v| f64::from(v))
}
