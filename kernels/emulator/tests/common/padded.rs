//! Matrices with room around them: what a kernel may not touch is compared bit by bit.

// Every test file takes what it needs of this one.
#![allow(dead_code)]

use half::bf16;
use tunesmith_emulator::check::values_bf16;
use tunesmith_kernels::gpu::{Driver, Element, Slice, View, ViewMut};

/// The rows that every kernel is tested on.
pub(crate) const ROWS: [usize; 5] = [1, 7, 64, 65, 127];

/// A value that tests can put into a matrix.
pub(crate) trait Cell: Element + PartialEq + std::fmt::Debug {
    /// What lies around a matrix.
    const AROUND: Self;
    /// What lies in a matrix that a kernel has to write.
    const POISON: Self;
    /// Its bits.
    fn bits(self) -> u32;
}

impl Cell for bf16 {
    const AROUND: Self = bf16::from_bits(0x4b4b);
    const POISON: Self = bf16::from_bits(0x7fa5);
    fn bits(self) -> u32 {
        self.to_bits().into()
    }
}

impl Cell for f32 {
    const AROUND: Self = 12_345.678;
    const POISON: Self = f32::from_bits(0x7fa5_a5a5);
    fn bits(self) -> u32 {
        self.to_bits()
    }
}

/// Where a matrix lies in its slice.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// The first value.
    pub(crate) at: usize,
    /// Columns between one row's end and the next one's start.
    pub(crate) gap: usize,
}

impl Shape {
    /// With room around it that keeps rows at multiples of 16 bytes if `cols` does.
    pub(crate) fn aligned(rows: usize, cols: usize) -> Self {
        Self { rows, cols, at: 16, gap: 24 }
    }

    /// With room around it that no vector access fits.
    pub(crate) fn odd(rows: usize, cols: usize) -> Self {
        Self { rows, cols, at: 3, gap: 5 }
    }

    /// Another number of columns, the same room.
    pub(crate) fn with_cols(self, cols: usize) -> Self {
        Self { cols, ..self }
    }

    fn ld(&self) -> usize {
        self.cols + self.gap
    }
}

/// A matrix on a device, and what was put there.
#[derive(Debug)]
pub(crate) struct Padded<D: Driver, T: Cell> {
    pub(crate) slice: Slice<D, T>,
    shape: Shape,
    before: Vec<T>,
}

impl<D: Driver, T: Cell> Padded<D, T> {
    /// `values` is `[rows, cols]`. The slice ends with the last value, so that the emulator sees what reads on.
    pub(crate) fn new(d: &D, shape: Shape, values: &[T]) -> Self {
        assert_eq!(values.len(), shape.rows * shape.cols);
        let mut before = vec![T::AROUND; shape.at + shape.rows * shape.ld() - shape.gap];
        for (i, row) in values.chunks(shape.cols).enumerate() {
            before[shape.at + i * shape.ld()..][..shape.cols].copy_from_slice(row);
        }
        Self { slice: Slice::from_host(d, &before).unwrap(), shape, before }
    }

    /// Waits for a kernel to write it.
    pub(crate) fn poisoned(d: &D, shape: Shape) -> Self {
        Self::new(d, shape, &vec![T::POISON; shape.rows * shape.cols])
    }

    pub(crate) fn view(&self) -> View<'_, D, T> {
        let Shape { rows, cols, at, .. } = self.shape;
        View { slice: &self.slice, at, rows, cols, ld: self.shape.ld() }
    }

    pub(crate) fn view_mut(&mut self) -> ViewMut<'_, D, T> {
        let Shape { rows, cols, at, .. } = self.shape;
        ViewMut { slice: &mut self.slice, at, rows, cols, ld: self.shape.ld() }
    }

    /// What it holds now, `[rows, cols]`.
    ///
    /// # Panics
    /// If anything around it has changed.
    #[track_caller]
    pub(crate) fn read(&self, d: &D) -> Vec<T> {
        let after = self.slice.to_host(d).unwrap();
        let mut out = Vec::with_capacity(self.shape.rows * self.shape.cols);
        for (i, (&new, &old)) in after.iter().zip(&self.before).enumerate() {
            let inside = i >= self.shape.at && (i - self.shape.at) % self.shape.ld() < self.shape.cols;
            if inside {
                out.push(new);
            } else {
                assert_eq!(new.bits(), old.bits(), "value {i}, outside of {:?}, was written", self.shape);
            }
        }
        out
    }
}

/// Random bf16 values of a shape.
pub(crate) fn random(seed: u64, shape: Shape) -> Vec<bf16> {
    values_bf16(seed, shape.rows * shape.cols)
}

/// The values as f64.
pub(crate) fn wide(values: &[bf16]) -> Vec<f64> {
    values.iter().map(|v| v.to_f64()).collect()
}

/// Asserts equal bits.
#[track_caller]
pub(crate) fn same_bits<T: Cell>(what: &str, a: &[T], b: &[T]) {
    assert_eq!(a.len(), b.len(), "{what}: lengths differ");
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert_eq!(a.bits(), b.bits(), "{what}: value {i} is {a:?} here and {b:?} there");
    }
}

/// Asserts that rows in `spoilt` hold a value that is not finite, that no other does, and that those have the bits of
/// `clean`.
#[track_caller]
pub(crate) fn only_these_rows(what: &str, out: &[bf16], clean: &[bf16], cols: usize, spoilt: &[usize]) {
    for (row, (out, clean)) in out.chunks(cols).zip(clean.chunks(cols)).enumerate() {
        if spoilt.contains(&row) {
            assert!(out.iter().any(|v| !v.is_finite()), "{what}: row {row} hides what was wrong with it");
        } else {
            same_bits(&format!("{what}, row {row}"), out, clean);
        }
    }
}
