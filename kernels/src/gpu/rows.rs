//! Gathering, copying and casting rows (`rows.cu`), and how a block of such a kernel is laid over a matrix.

use half::bf16;

use super::driver::{Arg, Driver, Launch};
use super::error::{Error, Result, expect};
use super::slice::{Element, Slice, View, ViewMut};

/// Threads of a block, at most.
const THREADS: usize = 256;
/// Rows that one thread of `rows.cu` works on.
const REPEAT: usize = 4;
/// Rows and columns fit `int` with room for a block beyond the edge.
const MOST: usize = 1 << 30;

/// Rows out of a table: `out[t] = m[index[t]]`, exactly.
///
/// An index that is not below `m.rows` gives a row of NaN: the indices lie on the device, so that the caller checks them
/// where the host knows them.
///
/// # Shapes
/// - m: `[n, cols]`, out: `[rows, cols]` bf16; index: `[rows]` or longer
///
/// # Errors
/// If the shapes do not match or a matrix is not inside its slice.
pub fn gather<D: Driver>(
    d: &D,
    m: View<'_, D, bf16>,
    index: &Slice<D, u32>,
    out: ViewMut<'_, D, bf16>,
) -> Result<()> {
    const OP: &str = "gather";
    expect(OP, index.len() >= out.rows, || format!("{} indices for {} rows", index.len(), out.rows))?;
    expect(OP, m.rows > 0 || out.rows == 0, || "there is no row to take".into())?;
    pick(d, OP, ["rows_gather_8", "rows_gather_1"], m, index.arg(d, 0), out)
}

/// Rows into zeros: `out[t] = m[inverse[t]]`, exactly, and a row of zeros where `inverse[t]` is -1.
///
/// `inverse` is what [`inverse`] makes of the rows that `m` goes to. Any other value that is not below `m.rows` gives a
/// row of NaN.
///
/// # Shapes
/// - m: `[n, cols]`, out: `[rows, cols]` bf16; inverse: `[rows]` or longer
///
/// # Errors
/// If the shapes do not match or a matrix is not inside its slice.
pub fn scatter<D: Driver>(
    d: &D,
    m: View<'_, D, bf16>,
    inverse: &Slice<D, i32>,
    out: ViewMut<'_, D, bf16>,
) -> Result<()> {
    const OP: &str = "scatter";
    expect(OP, inverse.len() >= out.rows, || {
        format!("an inverse of {} rows for {} rows", inverse.len(), out.rows)
    })?;
    if m.rows == 0 {
        same_cols(OP, m.cols, out.cols)?;
        return clear(d, out);
    }
    pick(d, OP, ["rows_scatter_8", "rows_scatter_1"], m, inverse.arg(d, 0), out)
}

/// For each of `len` rows its place in `rows`, or -1: what [`scatter`] takes.
///
/// # Errors
/// If a row is not below `len` or comes twice.
pub fn inverse(rows: &[usize], len: usize) -> Result<Vec<i32>> {
    const OP: &str = "inverse";
    expect(OP, rows.len() <= MOST, || format!("{} rows are too many", rows.len()))?;
    let mut out = vec![-1; len];
    for (i, &row) in rows.iter().enumerate() {
        let place = out.get_mut(row).ok_or_else(|| Error::shape(OP, format!("row {row} of {len} rows")))?;
        expect(OP, *place == -1, || format!("row {row} comes twice"))?;
        *place = i as i32;
    }
    Ok(out)
}

/// out = m, exactly.
///
/// # Shapes
/// - m, out: `[rows, cols]` bf16
///
/// # Errors
/// If the shapes differ or a matrix is not inside its slice.
pub fn copy<D: Driver>(d: &D, m: View<'_, D, bf16>, out: ViewMut<'_, D, bf16>) -> Result<()> {
    pair(d, "copy", ["rows_copy_8", "rows_copy_1"], None, m, out)
}

/// out += m, one rounding.
///
/// # Shapes
/// - m, out: `[rows, cols]` bf16
///
/// # Errors
/// If the shapes differ or a matrix is not inside its slice.
pub fn add<D: Driver>(d: &D, m: View<'_, D, bf16>, out: ViewMut<'_, D, bf16>) -> Result<()> {
    pair(d, "add", ["rows_add_8", "rows_add_1"], None, m, out)
}

/// out = alpha · m, one rounding to bf16 of the f32 product.
///
/// # Shapes
/// - m: `[rows, cols]` f32, out: `[rows, cols]` bf16
///
/// # Errors
/// If the shapes differ or a matrix is not inside its slice.
pub fn narrow<D: Driver>(d: &D, alpha: f32, m: View<'_, D, f32>, out: ViewMut<'_, D, bf16>) -> Result<()> {
    pair(d, "narrow", ["rows_narrow_8", "rows_narrow_1"], Some(Arg::F32(alpha)), m, out)
}

/// out = m, exactly.
///
/// # Shapes
/// - m: `[rows, cols]` bf16, out: `[rows, cols]` f32
///
/// # Errors
/// If the shapes differ or a matrix is not inside its slice.
pub fn widen<D: Driver>(d: &D, m: View<'_, D, bf16>, out: ViewMut<'_, D, f32>) -> Result<()> {
    pair(d, "widen", ["rows_widen_8", "rows_widen_1"], None, m, out)
}

/// All of out = value.
///
/// # Shapes
/// - out: `[rows, cols]` bf16
///
/// # Errors
/// If the matrix is not inside its slice.
pub fn fill<D: Driver>(d: &D, value: f32, out: ViewMut<'_, D, bf16>) -> Result<()> {
    const OP: &str = "fill";
    out.check(OP, "out", 1)?;
    if out.rows == 0 || out.cols == 0 {
        return Ok(());
    }
    let wide = out.is_wide();
    let tiling = Tiling::new(OP, out.rows, out.cols, wide, REPEAT)?;
    let args = [out.arg(d), Arg::I64(out.ld as i64), Arg::F32(value)];
    // SAFETY: the kernel writes the matrix, which was found inside its slice, and takes these arguments.
    unsafe { tiling.launch(d, ["rows_fill_8", "rows_fill_1"], &args) }
}

/// All of out = 0.
///
/// # Shapes
/// - out: `[rows, cols]` bf16
///
/// # Errors
/// If the matrix is not inside its slice.
pub fn clear<D: Driver>(d: &D, out: ViewMut<'_, D, bf16>) -> Result<()> {
    fill(d, 0.0, out)
}

fn same_cols(op: &'static str, m: usize, out: usize) -> Result<()> {
    expect(op, m == out, || format!("rows of {m} into rows of {out} columns"))
}

/// [`gather`] and [`scatter`]: `index` is the address of `out.rows` values of four bytes.
fn pick<D: Driver>(
    d: &D,
    op: &'static str,
    kernels: [&'static str; 2],
    m: View<'_, D, bf16>,
    index: Arg,
    out: ViewMut<'_, D, bf16>,
) -> Result<()> {
    same_cols(op, m.cols, out.cols)?;
    m.check(op, "m", 1)?;
    out.check(op, "out", 1)?;
    if out.rows == 0 || out.cols == 0 {
        return Ok(());
    }
    expect(op, m.rows <= MOST, || format!("m has {} rows, more than a kernel can count", m.rows))?;
    let tiling = Tiling::new(op, out.rows, out.cols, m.is_wide() && out.is_wide(), REPEAT)?;
    let args = [
        m.arg(d),
        Arg::I64(m.ld as i64),
        Arg::U32(m.rows as u32),
        index,
        out.arg(d),
        Arg::I64(out.ld as i64),
    ];
    // SAFETY: both matrices were found inside their slices, there is an index for every row of `out`, the kernel reads
    // no row that `m` does not have, and it takes these arguments.
    unsafe { tiling.launch(d, kernels, &args) }
}

/// An operation on two matrices of one shape; `first` goes before all other arguments.
fn pair<D: Driver, T: Element, U: Element>(
    d: &D,
    op: &'static str,
    kernels: [&'static str; 2],
    first: Option<Arg>,
    m: View<'_, D, T>,
    out: ViewMut<'_, D, U>,
) -> Result<()> {
    expect(op, m.rows == out.rows && m.cols == out.cols, || {
        format!("m [{}, {}] into out [{}, {}]", m.rows, m.cols, out.rows, out.cols)
    })?;
    m.check(op, "m", 1)?;
    out.check(op, "out", 1)?;
    if out.rows == 0 || out.cols == 0 {
        return Ok(());
    }
    let tiling = Tiling::new(op, out.rows, out.cols, m.is_wide() && out.is_wide(), REPEAT)?;
    let mut args = Vec::with_capacity(9);
    args.extend(first);
    args.extend([m.arg(d), Arg::I64(m.ld as i64), out.arg(d), Arg::I64(out.ld as i64)]);
    // SAFETY: both matrices were found inside their slices and have one shape, and the kernel takes these arguments.
    unsafe { tiling.launch(d, kernels, &args) }
}

/// Whether a matrix can be worked on eight values at a time.
pub(super) trait Wide {
    /// Whether every row starts at a multiple of 16 bytes and is a multiple of eight values long.
    fn is_wide(&self) -> bool;
}

impl<D: Driver, T: Element> Wide for View<'_, D, T> {
    fn is_wide(&self) -> bool {
        is_wide::<T>(self.at, self.rows, self.cols, self.ld)
    }
}

impl<D: Driver, T: Element> Wide for ViewMut<'_, D, T> {
    fn is_wide(&self) -> bool {
        is_wide::<T>(self.at, self.rows, self.cols, self.ld)
    }
}

fn is_wide<T: Element>(at: usize, rows: usize, cols: usize, ld: usize) -> bool {
    let vector = 16 / size_of::<T>();
    at.is_multiple_of(vector) && (rows <= 1 || ld.is_multiple_of(vector)) && cols.is_multiple_of(8)
}

/// How the blocks of an elementwise kernel lie over a matrix: `place` in `rows.cuh`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tiling {
    rows: usize,
    cols: usize,
    wide: bool,
    lanes: usize,
    chunks: usize,
    threads: u32,
    blocks: u32,
}

impl Tiling {
    /// For a matrix that is not empty and kernels whose threads work on `repeat` rows.
    pub(super) fn new(op: &'static str, rows: usize, cols: usize, wide: bool, repeat: usize) -> Result<Self> {
        let pieces = if wide { cols / 8 } else { cols };
        let chunks = pieces.div_ceil(THREADS);
        let lanes = pieces.div_ceil(chunks);
        let per_block = THREADS / lanes;
        let threads = (lanes * per_block).next_multiple_of(32) as u32;
        let blocks = rows.div_ceil(per_block * repeat).saturating_mul(chunks);
        let blocks = grid(op, rows, cols, blocks)?;
        Ok(Self { rows, cols, wide, lanes, chunks, threads, blocks })
    }

    /// Queues the first of two kernels, or the second if the matrix is not wide, with `args` and what `place` needs:
    /// rows, columns, lanes and chunks.
    ///
    /// # Safety
    /// As [`Driver::launch`]; the kernel uses no shared memory.
    pub(super) unsafe fn launch<D: Driver>(
        &self,
        d: &D,
        [wide, any]: [&'static str; 2],
        args: &[Arg],
    ) -> Result<()> {
        let kernel = if self.wide { wide } else { any };
        let mut all = args.to_vec();
        all.extend([self.rows, self.cols, self.lanes, self.chunks].map(|v| Arg::I32(v as i32)));
        let launch =
            Launch { kernel, grid: [self.blocks, 1, 1], threads: self.threads, shared: 0, args: &all };
        // SAFETY: the caller's promise.
        unsafe { d.launch(&launch) }
    }
}

/// The number of blocks as a launch takes it, if rows, columns and blocks can be counted.
pub(super) fn grid(op: &'static str, rows: usize, cols: usize, blocks: usize) -> Result<u32> {
    expect(op, rows <= MOST && cols <= MOST && blocks < 1 << 31, || {
        format!("[{rows}, {cols}] is more than a kernel can count")
    })?;
    Ok(blocks as u32)
}
