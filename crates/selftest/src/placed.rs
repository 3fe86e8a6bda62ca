//! Matrices on a device that lie inside larger ones of NaN: what is read beside them shows in the result, what is
//! written beside them is seen.

use tunesmith_ops::{Kernels, Mat, MatMut};

use crate::lab::Fault;

/// How the rows of a matrix lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rows {
    /// On multiples of 16 bytes, as in a model.
    Aligned,
    /// On no multiple of anything.
    Odd,
}

/// A matrix of activations.
pub(crate) struct Placed<K: Kernels> {
    buf: K::Buf,
    at: usize,
    rows: usize,
    cols: usize,
    ld: usize,
}

impl<K: Kernels> Placed<K> {
    /// A matrix that holds `values`, or NaN where there are none: what is to be written whole.
    pub(crate) fn new(
        k: &K,
        how: Rows,
        (rows, cols): (usize, usize),
        values: Option<&[f32]>,
    ) -> Result<Self, Fault> {
        let (at, ld) = match how {
            Rows::Aligned => (16, cols.next_multiple_of(8) + 8),
            Rows::Odd => (3, cols + 5 - cols % 2),
        };
        let mut host = vec![f32::NAN; at + rows * ld + 8];
        if let Some(values) = values {
            for (i, row) in values.chunks_exact(cols.max(1)).enumerate() {
                host[at + i * ld..][..cols].copy_from_slice(row);
            }
        }
        let mut buf = k.zeros(host.len())?;
        k.write(&host, MatMut::new(&mut buf, 1, host.len(), host.len()))?;
        Ok(Self { buf, at, rows, cols, ld })
    }

    pub(crate) fn get(&self) -> Mat<'_, K::Buf> {
        Mat { at: self.at, ..Mat::new(&self.buf, self.rows, self.cols, self.ld) }
    }

    pub(crate) fn get_mut(&mut self) -> MatMut<'_, K::Buf> {
        let Self { at, rows, cols, ld, .. } = *self;
        MatMut { at, ..MatMut::new(&mut self.buf, rows, cols, ld) }
    }

    /// The values; a fault if anything beside them is no NaN any more.
    pub(crate) fn read(&self, k: &K) -> Result<Vec<f32>, Fault> {
        let len = self.at + self.rows * self.ld + 8;
        let all = k.read(Mat::new(&self.buf, 1, len, len))?;
        let mut out = Vec::with_capacity(self.rows * self.cols);
        for (place, &v) in all.iter().enumerate() {
            let inside = place
                .checked_sub(self.at)
                .is_some_and(|p| p / self.ld < self.rows && p % self.ld < self.cols);
            if inside {
                out.push(v);
            } else if !v.is_nan() {
                return Err(Fault::Wrong(format!(
                    "it wrote {v} outside of a [{}, {}] matrix",
                    self.rows, self.cols
                )));
            }
        }
        Ok(out)
    }
}

/// A flat buffer of activations that ends where its values end: the weights of a norm.
pub(crate) fn flat<K: Kernels>(k: &K, values: &[f32]) -> Result<K::Buf, Fault> {
    let mut buf = k.zeros(values.len())?;
    k.write(values, MatMut::new(&mut buf, 1, values.len(), values.len()))?;
    Ok(buf)
}

/// Values after the end of an f32 buffer that must stay.
const TAIL: usize = 3;

/// An f32 buffer of `values` with NaN behind them.
pub(crate) fn full<K: Kernels>(k: &K, values: &[f32]) -> Result<K::Full, Fault> {
    let mut host = values.to_vec();
    host.extend([f32::NAN; TAIL]);
    exact_full(k, &host)
}

/// An f32 buffer of `values` and nothing else.
pub(crate) fn exact_full<K: Kernels>(k: &K, values: &[f32]) -> Result<K::Full, Fault> {
    let mut buf = k.zeros_full(values.len())?;
    k.write_full(values, &mut buf, 0)?;
    Ok(buf)
}

/// The values of [`full`]; a fault if what is behind them was written.
pub(crate) fn read_full<K: Kernels>(k: &K, buf: &K::Full) -> Result<Vec<f32>, Fault> {
    let mut all = k.read_full(buf)?;
    let len = all.len().saturating_sub(TAIL);
    match all.split_off(len).into_iter().find(|v| !v.is_nan()) {
        Some(v) => Err(Fault::Wrong(format!("it wrote {v} behind the end of {len} values"))),
        None => Ok(all),
    }
}
