//! C = alpha · A · B + beta · C in f32, for strided A and B and a row-major C with a leading dimension.
//!
//! A wide product is cut into strips of columns, one thread each. In a narrow one, blocks of B (`Tile::kc` x `NC`) are
//! packed once and shared by all threads, and each thread packs its own rows of A.
//! No element of C is ever split along the depth between threads, so the result does not depend on their number.

use std::cell::Cell;
use std::thread::LocalKey;

use rayon::prelude::*;

use super::memory::zeroed;
use super::micro::{MAX_TILE, Out, Tile};
use super::pack;
use super::row::dot;
use super::simd::multiversion;

/// Columns of a block of B.
const NC: usize = 4096;
/// Columns of a strip that one thread multiplies on its own, at least.
const STRIP: usize = 512;
/// Tiles of rows that one task packs at a time.
const ROW_TILES: usize = 32;
/// Panels of B that one task packs.
const PANELS: usize = 8;
/// Products below this many multiply-adds are not worth a second thread.
const SERIAL_BELOW: usize = 1 << 18;

/// A matrix to read: element `(i, j)` is at `i * row_stride + j * col_stride` of `data`.
#[derive(Debug, Clone, Copy)]
pub struct MatRef<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> MatRef<'a> {
    /// A row-major matrix whose rows are `ld` apart.
    ///
    /// # Panics
    /// If `data` is too short for it.
    pub fn new(data: &'a [f32], rows: usize, cols: usize, ld: usize) -> Self {
        check(data.len(), rows, cols, ld);
        Self { data, rows, cols, row_stride: ld, col_stride: 1 }
    }

    /// The transpose, without moving anything.
    #[must_use]
    pub fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

/// A row-major matrix to write, with rows `ld` apart.
#[derive(Debug)]
pub struct MatMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    cols: usize,
    ld: usize,
}

impl<'a> MatMut<'a> {
    /// A row-major matrix whose rows are `ld` apart.
    ///
    /// # Panics
    /// If `data` is too short for it.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize, ld: usize) -> Self {
        check(data.len(), rows, cols, ld);
        Self { data, rows, cols, ld }
    }
}

fn check(len: usize, rows: usize, cols: usize, ld: usize) {
    assert!(cols <= ld || rows <= 1, "rows of {cols} columns overlap at leading dimension {ld}");
    let need = if rows == 0 || cols == 0 { 0 } else { (rows - 1) * ld + cols };
    assert!(
        len >= need,
        "a {rows} x {cols} matrix with leading dimension {ld} needs {need} values, not {len}"
    );
}

/// C = alpha · A · B + beta · C, on all threads of the current rayon pool. With `beta` 0, C is not read.
///
/// # Shapes
/// - a: `[m, k]`, b: `[k, n]`, c: `[m, n]`
///
/// # Panics
/// If the shapes do not match.
pub fn gemm(alpha: f32, a: MatRef<'_>, b: MatRef<'_>, beta: f32, c: MatMut<'_>) {
    let threads = if a.rows * a.cols * b.cols < SERIAL_BELOW { 1 } else { rayon::current_num_threads() };
    run(alpha, a, b, beta, c, threads);
}

/// [`gemm`] on the calling thread alone; the same bits.
///
/// # Panics
/// If the shapes do not match.
pub fn gemm_serial(alpha: f32, a: MatRef<'_>, b: MatRef<'_>, beta: f32, c: MatMut<'_>) {
    run(alpha, a, b, beta, c, 1);
}

fn run(alpha: f32, a: MatRef<'_>, b: MatRef<'_>, beta: f32, c: MatMut<'_>, threads: usize) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    assert!(
        b.rows == k && c.rows == m && c.cols == n,
        "[{m}, {k}] x [{}, {n}] into [{}, {}]",
        b.rows,
        c.rows,
        c.cols
    );
    if m == 0 || n == 0 {
        return;
    }
    if k == 0 {
        for row in c.data.chunks_mut(c.ld).take(m) {
            for v in &mut row[..n] {
                *v = if beta == 0.0 { 0.0 } else { beta * *v };
            }
        }
        return;
    }
    if m == 1 && a.col_stride == 1 && b.row_stride == 1 {
        return gemv(alpha, &a.data[..k], b, beta, &mut c.data[..n], threads);
    }
    let tile = Tile::get();
    // Blocks of equal depth: a short last one would cost a whole pass over C for little.
    let depth = k.div_ceil(k.div_ceil(tile.kc)).next_multiple_of(8);
    let product = Product { tile, alpha, beta, a, b, depth, c: Shared(c.data.as_mut_ptr()), ld: c.ld };
    if threads == 1 || n < STRIP * threads {
        return product.columns(0, n, threads);
    }
    // Wide enough for a strip of columns per task: no thread waits for another until the end, at the price of packing A
    // once per strip. Strips outnumber threads so that a slow core takes fewer.
    let width = n.div_ceil(2 * threads).clamp(STRIP, NC).next_multiple_of(tile.nr);
    (0..n.div_ceil(width)).into_par_iter().with_max_len(1).for_each(|strip| {
        let from = strip * width;
        product.columns(from, n.min(from + width), 1);
    });
}

/// A whole product whose shapes have been checked.
struct Product<'a> {
    tile: Tile,
    alpha: f32,
    beta: f32,
    a: MatRef<'a>,
    b: MatRef<'a>,
    depth: usize,
    c: Shared,
    ld: usize,
}

impl Product<'_> {
    /// Columns `from..to` of C.
    fn columns(&self, from: usize, to: usize, threads: usize) {
        let (k, tile, a) = (self.a.cols, self.tile, self.a);
        let room = self.depth.min(k) * (NC.min(to - from) + tile.nr);
        with_scratch(&PACKED_B, room, |packed| {
            for jc in (from..to).step_by(NC) {
                let nc = NC.min(to - jc);
                for pc in (0..k).step_by(self.depth) {
                    let kc = self.depth.min(k - pc);
                    pack_b(tile, self.b, pc, kc, jc, nc, packed, threads);
                    let beta = if pc == 0 { self.beta } else { 1.0 };
                    let block = Block { tile, alpha: self.alpha, beta, a, packed, jc, nc, pc, kc };
                    block.multiply(self.c, self.ld, a.rows, threads);
                }
            }
        });
    }
}

/// y = alpha · xᵀB + beta · y for a B whose columns are contiguous: one dot product per output.
fn gemv(alpha: f32, x: &[f32], b: MatRef<'_>, beta: f32, y: &mut [f32], threads: usize) {
    let one = |j: usize, y: &mut f32| {
        let d = alpha * dot(x, &b.data[j * b.col_stride..j * b.col_stride + x.len()]);
        *y = if beta == 0.0 { d } else { d + beta * *y };
    };
    if threads == 1 {
        y.iter_mut().enumerate().for_each(|(j, y)| one(j, y));
    } else {
        y.par_iter_mut().with_min_len(64).enumerate().for_each(|(j, y)| one(j, y));
    }
}

fn pack_b(
    tile: Tile,
    b: MatRef<'_>,
    pc: usize,
    kc: usize,
    jc: usize,
    nc: usize,
    packed: &mut [f32],
    threads: usize,
) {
    let group = PANELS * tile.nr;
    let one = |(g, out): (usize, &mut [f32])| {
        let j = g * group;
        let columns = group.min(nc - j);
        let data = &b.data[(jc + j) * b.col_stride + pc * b.row_stride..];
        let block = pack::Block {
            data,
            row_stride: b.col_stride,
            depth_stride: b.row_stride,
            rows: columns,
            depth: kc,
        };
        let last = tile.panel_width((columns - 1) / tile.nr * tile.nr, columns);
        block.pack(tile.nr, if j + columns == nc { last } else { tile.nr }, out);
    };
    let packed = &mut packed[..nc.div_ceil(tile.nr) * tile.nr * kc];
    if threads == 1 {
        packed.chunks_mut(group * kc).enumerate().for_each(one);
    } else {
        packed.par_chunks_mut(group * kc).enumerate().for_each(one);
    }
}

/// One packed block of B against all rows of A.
struct Block<'a> {
    tile: Tile,
    alpha: f32,
    beta: f32,
    a: MatRef<'a>,
    packed: &'a [f32],
    jc: usize,
    nc: usize,
    pc: usize,
    kc: usize,
}

/// Lets tasks write disjoint tiles of one C.
#[derive(Clone, Copy)]
struct Shared(*mut f32);
// SAFETY: the tasks of one product write disjoint ranges of rows and columns (see `Block::multiply`).
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Block<'_> {
    fn multiply(&self, c: Shared, ld: usize, m: usize, threads: usize) {
        let (rows, cols) = self.grid(m, threads);
        let task = |t: usize| {
            let (r, s) = (t / m.div_ceil(rows).max(1), t % m.div_ceil(rows).max(1));
            let (j0, i0) = (r * cols, s * rows);
            self.task(c, ld, i0, rows.min(m - i0), j0, cols.min(self.nc - j0));
        };
        let tasks = m.div_ceil(rows) * self.nc.div_ceil(cols);
        if threads == 1 {
            (0..tasks).for_each(task);
        } else {
            (0..tasks).into_par_iter().with_max_len(1).for_each(task);
        }
    }

    /// Rows and columns of one task: small enough that every thread gets some, whole tiles always.
    fn grid(&self, m: usize, threads: usize) -> (usize, usize) {
        let Tile { mr, nr, .. } = self.tile;
        let mut rows = ROW_TILES * mr;
        if threads > 1 {
            rows = rows.min(m.div_ceil(4 * threads).div_ceil(mr) * mr);
        }
        let want = (4 * threads).div_ceil(m.div_ceil(rows));
        let cols = if threads == 1 || want <= 1 { self.nc } else { self.nc.div_ceil(want).div_ceil(nr) * nr };
        (rows, cols.max(nr))
    }

    fn task(&self, c: Shared, ld: usize, i0: usize, rows: usize, j0: usize, cols: usize) {
        let (mr, kc) = (self.tile.mr, self.kc);
        with_scratch(&PACKED_A, rows.div_ceil(mr) * mr * kc, |packed| {
            self.tiles(packed, c, ld, i0, rows, j0, cols);
        });
    }

    fn tiles(
        &self,
        packed: &mut [f32],
        c: Shared,
        ld: usize,
        i0: usize,
        rows: usize,
        j0: usize,
        cols: usize,
    ) {
        let Tile { mr, nr, .. } = self.tile;
        let kc = self.kc;
        let block = pack::Block {
            data: &self.a.data[i0 * self.a.row_stride + self.pc * self.a.col_stride..],
            row_stride: self.a.row_stride,
            depth_stride: self.a.col_stride,
            rows,
            depth: kc,
        };
        block.pack(mr, mr, packed);
        let mut edge = [0f32; MAX_TILE];
        for j in (j0..j0 + cols).step_by(nr) {
            let width = self.tile.panel_width(j, self.nc);
            let b = &self.packed[j * kc..j * kc + width * kc];
            for (t, a) in packed.chunks(mr * kc).take(rows.div_ceil(mr)).enumerate() {
                let i = i0 + t * mr;
                let (h, w) = (mr.min(i0 + rows - i), width.min(self.nc - j));
                for r in 0..h {
                    // The tile of C is far away: fetch it while the products are summed.
                    prefetch(c.0.wrapping_add((i + r) * ld + self.jc + j), w);
                }
                let at = (i * ld) + self.jc + j;
                if h == mr && w == width && (self.beta == 0.0 || self.beta == 1.0) {
                    let at = c.0.wrapping_add(at);
                    let out = Out { at, ld, alpha: self.alpha, accumulate: self.beta == 1.0 };
                    // SAFETY: `a` holds kc * mr values, `b` kc * width; rows i..i+mr and columns j..j+width lie
                    // inside C, which `MatMut::new` checked, and belong to this task alone.
                    unsafe { self.tile.run(width, kc, a.as_ptr(), b.as_ptr(), out) };
                    continue;
                }
                let out = Out { at: edge.as_mut_ptr(), ld: width, alpha: 1.0, accumulate: false };
                // SAFETY: as above; `edge` holds at least mr * width.
                unsafe { self.tile.run(width, kc, a.as_ptr(), b.as_ptr(), out) };
                for (r, acc) in edge.chunks_exact(width).take(h).enumerate() {
                    // SAFETY: row i + r and columns j..j+w lie inside C and belong to this task alone.
                    let dst = unsafe { std::slice::from_raw_parts_mut(c.0.add(at + r * ld), w) };
                    store(self.alpha, self.beta, &acc[..w], dst);
                }
            }
        }
    }
}

multiversion! {
    fn store(alpha: f32, beta: f32, acc: &[f32], dst: &mut [f32]) {
        if beta == 0.0 {
            dst.iter_mut().zip(acc).for_each(|(d, &a)| *d = alpha * a);
        } else if beta == 1.0 {
            dst.iter_mut().zip(acc).for_each(|(d, &a)| *d += alpha * a);
        } else {
            dst.iter_mut().zip(acc).for_each(|(d, &a)| *d = alpha * a + beta * *d);
        }
    }
}

/// Asks for the cache lines of `n` values at `at`; harmless whatever the address.
#[inline(always)]
fn prefetch(at: *const f32, n: usize) {
    #[cfg(target_arch = "x86_64")]
    for k in (0..n).step_by(16) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing that the program can see and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(k).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (at, n);
}

thread_local! {
    static PACKED_A: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    static PACKED_B: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Runs `f` with a thread's packing buffer, taken out of its slot meanwhile: a product that starts on this
/// thread while another one waits in it (work stealing) finds the slot empty and makes its own.
fn with_scratch<R>(
    slot: &'static LocalKey<Cell<Vec<f32>>>,
    len: usize,
    f: impl FnOnce(&mut [f32]) -> R,
) -> R {
    let mut buf = slot.with(Cell::take);
    if buf.len() < len + 16 {
        // Without memory for it the ordinary allocation below ends the program, as any does.
        buf = zeroed(len + 16).unwrap_or_else(|_| vec![0.0; len + 16]);
    }
    // Whole cache lines: a vector load never straddles two.
    let at = (buf.as_ptr() as usize).wrapping_neg() % 64 / 4;
    let result = f(&mut buf[at..at + len]);
    slot.with(|s| s.set(buf));
    result
}
