//! Causal attention over packed documents without a T x T matrix: keys are visited in tiles, the softmax is
//! kept up to date as they pass (forward) or rebuilt from the saved log-sum-exp (backward).
//!
//! With s = q kᵀ / √d over the visible keys: `o = softmax(s) v`, `lse = log Σ e^s`. Backward, with
//! `p = e^(s - lse)` and `D = Σ_j o_j do_j`: `dv = pᵀ do`, `ds = p (do vᵀ - D)`, `dq = ds k / √d`, `dk = dsᵀ q / √d`.

use std::ops::Range;

use rayon::prelude::*;

use super::gemm::{MatMut, MatRef, gemm_serial};
use super::row::{dot, exp_shifted_sum, max_value, scale};

/// Queries of one tile.
const TILE_Q: usize = 64;
/// Keys of one tile.
const TILE_K: usize = 128;

/// One document: its query rows, its key rows and the position of each query in it.
#[derive(Debug, Clone)]
pub struct Document<'a> {
    /// Rows of q and o.
    pub queries: Range<usize>,
    /// Rows of k and v.
    pub keys: Range<usize>,
    /// `[queries]`, ascending positions below `keys.len()`.
    pub positions: &'a [usize],
}

/// The shape of an attention call.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Size of a head.
    pub dim: usize,
    /// Keys that a query sees, itself included.
    pub window: usize,
}

/// A row-major matrix of heads side by side, rows `ld` apart.
#[derive(Debug, Clone, Copy)]
pub struct HeadsRef<'a> {
    /// The values, from the first row's first head on.
    pub data: &'a [f32],
    /// Distance between rows.
    pub ld: usize,
}

impl<'a> HeadsRef<'a> {
    fn tile(self, rows: Range<usize>, head: usize, dim: usize) -> MatRef<'a> {
        MatRef::new(&self.data[rows.start * self.ld + head * dim..], rows.len(), dim, self.ld)
    }

    fn row(self, row: usize, head: usize, dim: usize) -> &'a [f32] {
        &self.data[row * self.ld + head * dim..][..dim]
    }
}

/// A matrix of heads that tasks write disjoint parts of.
#[derive(Clone, Copy)]
struct Shared {
    at: *mut f32,
    len: usize,
    ld: usize,
}
// SAFETY: each task writes only the rows of its document and the columns of its heads.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    fn new(data: &mut [f32], ld: usize) -> Self {
        Self { at: data.as_mut_ptr(), len: data.len(), ld }
    }

    /// The same matrix without its first `column` columns.
    fn without_columns(self, column: usize) -> Self {
        let column = column.min(self.len);
        Self { at: self.at.wrapping_add(column), len: self.len - column, ld: self.ld }
    }

    /// One row of one head.
    ///
    /// # Safety
    /// No other task may hold the same row and head.
    #[allow(clippy::mut_from_ref)]
    unsafe fn row(&self, row: usize, head: usize, dim: usize) -> &mut [f32] {
        let at = row * self.ld + head * dim;
        assert!(at + dim <= self.len, "row {row}, head {head} is outside the buffer");
        // SAFETY: inside the buffer, and the caller keeps rows and heads apart.
        unsafe { std::slice::from_raw_parts_mut(self.at.add(at), dim) }
    }
}

/// Keys that any of `positions` sees.
fn visible(positions: &[usize], window: usize) -> Range<usize> {
    match (positions.first(), positions.last()) {
        (Some(first), Some(last)) => (first + 1).saturating_sub(window)..last + 1,
        _ => 0..0,
    }
}

/// Scores beyond the causal edge or the window become -inf.
fn mask(scores: &mut [f32], width: usize, positions: &[usize], keys: &Range<usize>, window: usize) {
    for (row, &p) in scores.chunks_exact_mut(width).zip(positions) {
        let hi = (p + 1).saturating_sub(keys.start).min(width);
        let lo = (p + 1).saturating_sub(window).saturating_sub(keys.start).min(width);
        row[hi..].fill(f32::NEG_INFINITY);
        row[..lo].fill(f32::NEG_INFINITY);
    }
}

/// Attention forward: writes `o` (rows of q, `heads * dim` wide, `o_ld` apart) and `lse` `[queries * heads]`.
///
/// # Panics
/// If a range of rows or heads is outside its buffer.
pub fn attention(
    h: Heads,
    documents: &[Document<'_>],
    q: HeadsRef<'_>,
    k: HeadsRef<'_>,
    v: HeadsRef<'_>,
    o: &mut [f32],
    o_ld: usize,
    lse: &mut [f32],
) {
    let (out, stats) = (Shared::new(o, o_ld), Shared::new(lse, h.heads));
    let tasks: Vec<(&Document<'_>, usize, usize)> = documents
        .iter()
        .flat_map(|d| (0..d.queries.len()).step_by(TILE_Q).map(move |t| (d, t)))
        .flat_map(|(d, t)| (0..h.heads).map(move |head| (d, t, head)))
        .collect();
    tasks.into_par_iter().for_each(|(doc, t, head)| {
        let n = TILE_Q.min(doc.queries.len() - t);
        forward_tile(h, doc, t..t + n, head, [q, k, v], out, stats);
    });
}

fn forward_tile(
    h: Heads,
    doc: &Document<'_>,
    tile: Range<usize>,
    head: usize,
    [q, k, v]: [HeadsRef<'_>; 3],
    out: Shared,
    stats: Shared,
) {
    let (n, dim, kv) = (tile.len(), h.dim, head / (h.heads / h.kv_heads));
    let positions = &doc.positions[tile.clone()];
    let rows = doc.queries.start + tile.start..doc.queries.start + tile.end;
    let softmax_scale = 1.0 / (dim as f32).sqrt();
    let (mut acc, mut scores) = (vec![0f32; n * dim], vec![0f32; n * TILE_K]);
    let (mut max, mut sum) = ([f32::NEG_INFINITY; TILE_Q], [0f32; TILE_Q]);
    let seen = visible(positions, h.window);
    for k0 in seen.clone().step_by(TILE_K) {
        let keys = k0..seen.end.min(k0 + TILE_K);
        let width = keys.len();
        let key_rows = doc.keys.start + keys.start..doc.keys.start + keys.end;
        let s = &mut scores[..n * width];
        let (qt, kt) = (q.tile(rows.clone(), head, dim), k.tile(key_rows.clone(), kv, dim));
        gemm_serial(softmax_scale, qt, kt.t(), 0.0, MatMut::new(s, n, width, width));
        mask(s, width, positions, &keys, h.window);
        for (i, row) in s.chunks_exact_mut(width).enumerate() {
            let new = max_value(row);
            let new = if new > max[i] || new.is_nan() { new } else { max[i] };
            if new == f32::NEG_INFINITY {
                // Nothing of this tile is visible to this query.
                row.fill(0.0);
                continue;
            }
            let fade = (max[i] - new).exp();
            max[i] = new;
            sum[i] = sum[i] * fade + exp_shifted_sum(row, new);
            scale(&mut acc[i * dim..(i + 1) * dim], fade);
        }
        let vt = v.tile(key_rows, kv, dim);
        gemm_serial(1.0, MatRef::new(s, n, width, width), vt, 1.0, MatMut::new(&mut acc, n, dim, dim));
    }
    for i in 0..n {
        // SAFETY: this task alone has these rows of this head.
        let (o, lse) = unsafe { (out.row(rows.start + i, head, dim), stats.row(rows.start + i, head, 1)) };
        let inverse = 1.0 / sum[i];
        o.iter_mut().zip(&acc[i * dim..]).for_each(|(o, &a)| *o = a * inverse);
        lse[0] = max[i] + sum[i].ln();
    }
}

/// What the backward pass reads.
#[derive(Debug, Clone, Copy)]
pub struct BackwardInputs<'a> {
    /// Rotated queries.
    pub q: HeadsRef<'a>,
    /// Rotated keys.
    pub k: HeadsRef<'a>,
    /// Values.
    pub v: HeadsRef<'a>,
    /// The forward's output.
    pub o: HeadsRef<'a>,
    /// The forward's log-sum-exp, `[queries * heads]`.
    pub lse: &'a [f32],
    /// Gradient of `o`.
    pub d_o: HeadsRef<'a>,
}

/// Where the backward pass writes: dq, and dk beside dv.
#[derive(Debug)]
pub enum GradientsMut<'a> {
    /// In buffers of their own.
    Apart {
        /// `[queries, heads * dim]`, rows `dq_ld` apart.
        dq: &'a mut [f32],
        /// Distance between the rows of dq.
        dq_ld: usize,
        /// `[keys, 2 * kv_heads * dim]`, rows `dkv_ld` apart.
        dkv: &'a mut [f32],
        /// Distance between the rows of dk and dv.
        dkv_ld: usize,
    },
    /// `[rows, (heads + 2 * kv_heads) * dim]`, side by side, where every row is query and key.
    Fused {
        /// All three.
        dqkv: &'a mut [f32],
        /// Distance between rows.
        ld: usize,
    },
}

/// Attention backward: writes the gradients of q, k and v.
///
/// One task owns one key/value head of one document and all query heads it serves, so every sum has one writer
/// and a fixed order.
///
/// # Panics
/// If a range of rows or heads is outside its buffer, or the rows of fused gradients overlap.
pub fn attention_backward(
    h: Heads,
    documents: &[Document<'_>],
    x: BackwardInputs<'_>,
    out: GradientsMut<'_>,
) {
    let (dq, dkv) = match out {
        GradientsMut::Apart { dq, dq_ld, dkv, dkv_ld } => (Shared::new(dq, dq_ld), Shared::new(dkv, dkv_ld)),
        GradientsMut::Fused { dqkv, ld } => {
            // dq takes the first columns of each row alone: the heads that it writes end where dk begins.
            assert!(ld >= (h.heads + 2 * h.kv_heads) * h.dim, "rows of dq, dk and dv overlap at {ld}");
            let all = Shared::new(dqkv, ld);
            (all, all.without_columns(h.heads * h.dim))
        }
    };
    let tasks: Vec<_> = documents.iter().flat_map(|d| (0..h.kv_heads).map(move |kv| (d, kv))).collect();
    tasks.into_par_iter().with_max_len(1).for_each(|(doc, kv)| backward_head(h, doc, kv, x, dq, dkv));
}

fn backward_head(h: Heads, doc: &Document<'_>, kv: usize, x: BackwardInputs<'_>, dq: Shared, dkv: Shared) {
    let (dim, group, total) = (h.dim, h.heads / h.kv_heads, doc.keys.len());
    let softmax_scale = 1.0 / (dim as f32).sqrt();
    let (mut dk, mut dv) = (vec![0f32; total * dim], vec![0f32; total * dim]);
    let (mut p, mut ds) = (vec![0f32; TILE_Q * TILE_K], vec![0f32; TILE_Q * TILE_K]);
    let mut dq_tile = vec![0f32; TILE_Q * dim];
    for head in kv * group..(kv + 1) * group {
        for t in (0..doc.queries.len()).step_by(TILE_Q) {
            let n = TILE_Q.min(doc.queries.len() - t);
            let positions = &doc.positions[t..t + n];
            let rows = doc.queries.start + t..doc.queries.start + t + n;
            let (qt, dot_) = (x.q.tile(rows.clone(), head, dim), x.d_o.tile(rows.clone(), head, dim));
            let mut delta = [0f32; TILE_Q];
            for (i, d) in delta[..n].iter_mut().enumerate() {
                *d = dot(x.o.row(rows.start + i, head, dim), x.d_o.row(rows.start + i, head, dim));
            }
            dq_tile[..n * dim].fill(0.0);
            let seen = visible(positions, h.window);
            for k0 in seen.clone().step_by(TILE_K) {
                let keys = k0..seen.end.min(k0 + TILE_K);
                let width = keys.len();
                let key_rows = doc.keys.start + keys.start..doc.keys.start + keys.end;
                let (kt, vt) = (x.k.tile(key_rows.clone(), kv, dim), x.v.tile(key_rows, kv, dim));
                let (p, ds) = (&mut p[..n * width], &mut ds[..n * width]);
                gemm_serial(softmax_scale, qt, kt.t(), 0.0, MatMut::new(p, n, width, width));
                mask(p, width, positions, &keys, h.window);
                for (i, row) in p.chunks_exact_mut(width).enumerate() {
                    exp_shifted_sum(row, x.lse[(rows.start + i) * h.heads + head]);
                }
                let span = keys.start * dim..keys.end * dim;
                let pm = MatRef::new(p, n, width, width);
                gemm_serial(1.0, pm.t(), dot_, 1.0, MatMut::new(&mut dv[span.clone()], width, dim, dim));
                gemm_serial(1.0, dot_, vt.t(), 0.0, MatMut::new(ds, n, width, width));
                for ((ds, p), d) in ds.chunks_exact_mut(width).zip(p.chunks_exact(width)).zip(&delta) {
                    ds.iter_mut().zip(p).for_each(|(ds, &p)| *ds = p * (*ds - d));
                }
                let dsm = MatRef::new(ds, n, width, width);
                gemm_serial(softmax_scale, dsm.t(), qt, 1.0, MatMut::new(&mut dk[span], width, dim, dim));
                let out = MatMut::new(&mut dq_tile, n, dim, dim);
                gemm_serial(softmax_scale, dsm, kt, 1.0, out);
            }
            for i in 0..n {
                // SAFETY: this task alone has the query heads of its group in this document.
                let row = unsafe { dq.row(rows.start + i, head, dim) };
                row.copy_from_slice(&dq_tile[i * dim..(i + 1) * dim]);
            }
        }
    }
    for i in 0..total {
        // SAFETY: this task alone has this key/value head in this document.
        let (k_row, v_row) = unsafe {
            (dkv.row(doc.keys.start + i, kv, dim), dkv.row(doc.keys.start + i, h.kv_heads + kv, dim))
        };
        k_row.copy_from_slice(&dk[i * dim..(i + 1) * dim]);
        v_row.copy_from_slice(&dv[i * dim..(i + 1) * dim]);
    }
}
