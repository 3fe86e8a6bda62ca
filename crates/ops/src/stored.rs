//! Weights in a file, as [`Kernels::load`](crate::Kernels::load) takes them.

use std::cell::Cell;
use std::io;

pub use tunesmith_kernels::stored::StoredType;
use tunesmith_kernels::stored::{self, Unfit};

use crate::Error;

/// Values of a task: what one thread reads and converts at a time.
pub(crate) const TASK: usize = 128 << 10;

/// The values of a matrix in a file, row by row without gaps, little-endian.
#[derive(Clone, Copy)]
pub struct Stored<'a> {
    /// Their type.
    pub of: StoredType,
    /// Reads bytes from an offset into the matrix on. Several threads call it at a time.
    pub read: &'a (dyn Fn(usize, &mut [u8]) -> io::Result<()> + Sync),
}

impl std::fmt::Debug for Stored<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stored({:?})", self.of)
    }
}

thread_local! {
    /// Stored bytes on their way to another size, kept from task to task.
    static BYTES: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

impl Stored<'_> {
    /// Values `first`, `first + 1`, ... as f32 into rows of `cols` that are `ld` apart.
    pub(crate) fn widen(&self, first: usize, cols: usize, ld: usize, out: &mut [f32]) -> Result<(), Error> {
        // Rows without gaps are read as one.
        let (step, cols) = if cols == ld { (out.len().max(1), out.len()) } else { (ld, cols) };
        let count = out.len().div_ceil(step) * cols;
        let rows = out.chunks_mut(step).map(|row| &mut row[..cols]).zip((first..).step_by(cols.max(1)));
        if self.of == StoredType::F32 {
            for (row, at) in rows {
                self.read(at, stored::bytes_of_mut(row))?;
                for v in &mut *row {
                    *v = f32::from_bits(u32::from_le(v.to_bits()));
                }
                fits(at, stored::first_not_finite(row))?;
            }
            return Ok(());
        }
        self.with_bytes(first, count, |bytes| {
            for (row, at) in rows {
                let bytes = &bytes[(at - first) * self.of.bytes()..][..row.len() * self.of.bytes()];
                fits(at, stored::widen(self.of, bytes, row))?;
            }
            Ok(())
        })
    }

    /// Values `first`, `first + 1`, ... as bytes of bf16.
    pub(crate) fn narrow(&self, first: usize, out: &mut [u8]) -> Result<(), Error> {
        if self.of == StoredType::F32 {
            return self
                .with_bytes(first, out.len() / 2, |bytes| fits(first, stored::narrow(self.of, bytes, out)));
        }
        self.read(first, out)?;
        fits(first, stored::narrow_in_place(self.of, out))
    }

    fn read(&self, first: usize, bytes: &mut [u8]) -> Result<(), Error> {
        (self.read)(first * self.of.bytes(), bytes).map_err(Error::Read)
    }

    fn with_bytes<R>(
        &self,
        first: usize,
        count: usize,
        f: impl FnOnce(&[u8]) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let mut bytes = BYTES.with(Cell::take);
        let len = count * self.of.bytes();
        if bytes.len() < len {
            bytes.resize(len, 0);
        }
        let out = self.read(first, &mut bytes[..len]).and_then(|()| f(&bytes[..len]));
        BYTES.with(|slot| slot.set(bytes));
        out
    }
}

fn fits(first: usize, unfit: Option<Unfit>) -> Result<(), Error> {
    match unfit {
        None => Ok(()),
        Some(Unfit { at, value }) if value.is_finite() => {
            Err(Error::ValueTooLarge { index: first + at, value })
        }
        Some(Unfit { at, .. }) => Err(Error::ValueNotFinite { index: first + at }),
    }
}
