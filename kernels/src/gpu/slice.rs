//! Typed device memory and views of matrices in it.

use std::marker::PhantomData;
use std::ops::Range;

use half::bf16;

use super::driver::{Arg, Driver};
use super::error::{Result, expect};
use super::pieces::{Fill, Rows};

/// A value that device memory can hold.
pub trait Element: Copy + Send + Sync + 'static + bytemuck::Pod {
    /// Its name in messages.
    const NAME: &'static str;
}

macro_rules! element {
    ($($ty:ty => $name:literal),*) => { $(impl Element for $ty { const NAME: &'static str = $name; })* };
}
element!(bf16 => "bf16", f32 => "f32", u32 => "u32", i32 => "i32", u8 => "u8", f64 => "f64");

/// A flat array of `T` on the device of `D`.
#[derive(Debug)]
pub struct Slice<D: Driver, T> {
    memory: D::Memory,
    len: usize,
    of: PhantomData<T>,
}

impl<D: Driver, T: Element> Slice<D, T> {
    /// `len` values, contents undefined.
    pub fn uninit(d: &D, len: usize) -> Result<Self> {
        // A block of no bytes has no address to pass on.
        let memory = d.alloc((len * size_of::<T>()).max(1))?;
        Ok(Self { memory, len, of: PhantomData })
    }

    /// `len` zeros.
    pub fn zeros(d: &D, len: usize) -> Result<Self> {
        let mut out = Self::uninit(d, len)?;
        out.clear(d)?;
        Ok(out)
    }

    /// A copy of host values.
    pub fn from_host(d: &D, values: &[T]) -> Result<Self> {
        let mut out = Self::uninit(d, values.len())?;
        out.write(d, 0, values)?;
        Ok(out)
    }

    /// A copy of host values in the memory of `old` where they fit, which then may be longer than they are; otherwise in
    /// memory for at least `room` values. What still reads the old values was queued before, and is done first.
    pub fn in_memory_of(old: Option<Self>, d: &D, room: usize, values: &[T]) -> Result<Self> {
        let mut out = match old {
            Some(old) if old.len >= values.len() => old,
            old => {
                // The old one first: the two need not fit side by side.
                drop(old);
                Self::uninit(d, room.max(values.len()))?
            }
        };
        out.write(d, 0, values)?;
        Ok(out)
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sets all values to zero.
    pub fn clear(&mut self, d: &D) -> Result<()> {
        if self.len == 0 { Ok(()) } else { d.clear(&mut self.memory, 0, self.len * size_of::<T>()) }
    }

    /// Copies host values to `at`.
    pub fn write(&mut self, d: &D, at: usize, values: &[T]) -> Result<()> {
        let ok = at.checked_add(values.len()).is_some_and(|end| end <= self.len);
        expect("write", ok, || format!("{} values at {at} into {} {}", values.len(), self.len, T::NAME))?;
        if values.is_empty() {
            return Ok(());
        }
        d.upload(bytemuck::cast_slice(values), &mut self.memory, at * size_of::<T>())
    }

    /// Copies values of a range to the host, after all queued work.
    pub fn read(&self, d: &D, range: Range<usize>) -> Result<Vec<T>> {
        expect("read", range.start <= range.end && range.end <= self.len, || {
            format!("{range:?} of {} {}", self.len, T::NAME)
        })?;
        let mut out = vec![T::zeroed(); range.len()];
        if !out.is_empty() {
            d.download(&self.memory, range.start * size_of::<T>(), bytemuck::cast_slice_mut(&mut out))?;
        }
        Ok(out)
    }

    /// Queues a copy of values of a range to the host and returns at once. What is written to them by work queued later
    /// does not show in it.
    pub fn read_later(&self, d: &D, range: Range<usize>) -> Result<Later<D, T>> {
        expect("read", range.start <= range.end && range.end <= self.len, || {
            format!("{range:?} of {} {}", self.len, T::NAME)
        })?;
        let (at, bytes) = (range.start * size_of::<T>(), range.len() * size_of::<T>());
        let download = (bytes > 0).then(|| d.download_later(&self.memory, at, bytes)).transpose()?;
        Ok(Later { download, len: range.len(), of: PhantomData })
    }

    /// Copies all values to the host.
    pub fn to_host(&self, d: &D) -> Result<Vec<T>> {
        self.read(d, 0..self.len)
    }

    /// The device address of value `at`, as a kernel argument.
    pub(crate) fn arg(&self, d: &D, at: usize) -> Arg {
        Arg::Address(self.address(d, at))
    }

    pub(crate) fn address(&self, d: &D, at: usize) -> u64 {
        d.address(&self.memory) + (at * size_of::<T>()) as u64
    }
}

/// Values on their way to the host.
#[derive(Debug)]
pub struct Later<D: Driver, T> {
    /// Nothing to wait for where there are no values.
    download: Option<D::Download>,
    len: usize,
    of: PhantomData<T>,
}

impl<D: Driver, T: Element> Later<D, T> {
    /// Waits for them, and for nothing that was queued later.
    pub fn wait(self, d: &D) -> Result<Vec<T>> {
        let mut out = vec![T::zeroed(); self.len];
        if let Some(download) = self.download {
            d.wait(download, bytemuck::cast_slice_mut(&mut out))?;
        }
        Ok(out)
    }
}

/// A row-major matrix on the device: element `(i, j)` is value `at + i * ld + j` of the slice.
#[derive(Debug)]
pub struct View<'a, D: Driver, T> {
    /// Where it lies.
    pub slice: &'a Slice<D, T>,
    /// Its first element.
    pub at: usize,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Distance between rows.
    pub ld: usize,
}

/// [`View`] of a matrix that an operation writes.
#[derive(Debug)]
pub struct ViewMut<'a, D: Driver, T> {
    /// Where it lies.
    pub slice: &'a mut Slice<D, T>,
    /// Its first element.
    pub at: usize,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Distance between rows.
    pub ld: usize,
}

impl<D: Driver, T> Clone for View<'_, D, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Driver, T> Copy for View<'_, D, T> {}

impl<'a, D: Driver, T: Element> View<'a, D, T> {
    /// The first `rows` rows and `cols` columns of a slice whose rows are `ld` apart.
    pub fn new(slice: &'a Slice<D, T>, rows: usize, cols: usize, ld: usize) -> Self {
        Self { slice, at: 0, rows, cols, ld }
    }

    /// Checks that it lies inside its slice and, with `vector` above 1, that every row starts at a multiple of
    /// `vector` elements (for accesses of that many at a time).
    pub(crate) fn check(&self, op: &'static str, name: &str, vector: usize) -> Result<()> {
        check(op, name, self.slice.len, (self.at, self.rows, self.cols, self.ld), vector)
    }

    /// The address of the first element.
    pub(crate) fn arg(&self, d: &D) -> Arg {
        self.slice.arg(d, self.at)
    }
}

impl<'a, D: Driver, T: Element> ViewMut<'a, D, T> {
    /// The first `rows` rows and `cols` columns of a slice whose rows are `ld` apart.
    pub fn new(slice: &'a mut Slice<D, T>, rows: usize, cols: usize, ld: usize) -> Self {
        Self { slice, at: 0, rows, cols, ld }
    }

    /// See [`View::check`].
    pub(crate) fn check(&self, op: &'static str, name: &str, vector: usize) -> Result<()> {
        check(op, name, self.slice.len, (self.at, self.rows, self.cols, self.ld), vector)
    }

    /// The address of the first element.
    pub(crate) fn arg(&self, d: &D) -> Arg {
        self.slice.arg(d, self.at)
    }

    /// Writes the matrix from staging memory that `fill` fills; see [`Driver::upload_rows`].
    pub fn fill_with(self, d: &D, fill: &mut Fill<'_>) -> Result<()> {
        self.check("fill_with", "out", 1)?;
        if self.rows == 0 || self.cols == 0 {
            return Ok(());
        }
        let size = size_of::<T>();
        let rows =
            Rows { at: self.at * size, rows: self.rows, bytes: self.cols * size, pitch: self.ld * size };
        d.upload_rows(&mut self.slice.memory, rows, fill)
    }
}

fn check(
    op: &'static str,
    name: &str,
    len: usize,
    (at, rows, cols, ld): (usize, usize, usize, usize),
    vector: usize,
) -> Result<()> {
    let end = (rows.max(1) - 1).checked_mul(ld).and_then(|v| v.checked_add(cols)?.checked_add(at));
    let inside = rows == 0 || (end.is_some_and(|end| end <= len) && (rows == 1 || cols <= ld));
    expect(op, inside, || {
        format!("{name} [{rows}, {cols}] at {at} (ld {ld}) is not inside its {len} values")
    })?;
    let aligned = at.is_multiple_of(vector) && (rows <= 1 || ld.is_multiple_of(vector));
    expect(op, aligned, || {
        format!("the rows of {name} (first value {at}, ld {ld}) must start at multiples of {vector}")
    })
}
