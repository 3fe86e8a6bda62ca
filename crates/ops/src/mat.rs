//! Views of matrices in flat buffers.

use std::ops::Range;

/// A row-major matrix to read: element `(i, j)` is at `at + i * ld + j` of the buffer, or `(j, i)` when `transposed`.
#[derive(Debug)]
pub struct Mat<'a, B> {
    /// The buffer.
    pub buf: &'a B,
    /// Where the first element is.
    pub at: usize,
    /// Stored rows.
    pub rows: usize,
    /// Stored columns.
    pub cols: usize,
    /// Distance between stored rows.
    pub ld: usize,
    /// Whether an operation sees the transpose.
    pub transposed: bool,
}

impl<B> Clone for Mat<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for Mat<'_, B> {}

impl<'a, B> Mat<'a, B> {
    /// The first `rows` rows and `cols` columns of a buffer whose rows are `ld` apart.
    pub fn new(buf: &'a B, rows: usize, cols: usize, ld: usize) -> Self {
        Self { buf, at: 0, rows, cols, ld, transposed: false }
    }

    /// Some of the stored columns.
    #[must_use]
    pub fn columns(self, range: Range<usize>) -> Self {
        Self { at: self.at + range.start, cols: range.len(), ..self }
    }

    /// Some of the stored rows.
    #[must_use]
    pub fn rows(self, range: Range<usize>) -> Self {
        Self { at: self.at + range.start * self.ld, rows: range.len(), ..self }
    }

    /// The transpose, without moving anything.
    #[must_use]
    pub fn t(self) -> Self {
        Self { transposed: !self.transposed, ..self }
    }
}

/// A row-major matrix to write: element `(i, j)` is at `at + i * ld + j` of the buffer.
#[derive(Debug)]
pub struct MatMut<'a, B> {
    /// The buffer.
    pub buf: &'a mut B,
    /// Where the first element is.
    pub at: usize,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Distance between rows.
    pub ld: usize,
}

impl<'a, B> MatMut<'a, B> {
    /// The first `rows` rows and `cols` columns of a buffer whose rows are `ld` apart.
    pub fn new(buf: &'a mut B, rows: usize, cols: usize, ld: usize) -> Self {
        Self { buf, at: 0, rows, cols, ld }
    }

    /// Some of the columns.
    #[must_use]
    pub fn columns(self, range: Range<usize>) -> Self {
        Self { at: self.at + range.start, cols: range.len(), ..self }
    }

    /// Some of the rows.
    #[must_use]
    pub fn rows(self, range: Range<usize>) -> Self {
        Self { at: self.at + range.start * self.ld, rows: range.len(), ..self }
    }
}
