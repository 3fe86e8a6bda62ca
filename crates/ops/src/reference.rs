//! [`RefKernels`]: the CPU backend, f32 throughout.

use std::cell::Cell;
use std::ops::Range;
use std::time::{Duration, Instant};

use rayon::prelude::*;
use tunesmith_kernels::cpu::{self, BackwardInputs, Document, GradientsMut, Heads, HeadsRef};

use crate::error::{expect, in_vocabulary};
use crate::kernels::{Attention, AttentionGradients, Flat, Kernels, Refresh};
use crate::stored::TASK;
use crate::{
    AdamW, DeviceMemory, DropoutKey, Error, FillKey, Index, Mat, MatMut, RopeTable, RowNames, Segment,
    Sequences, Storage, Stored,
};

/// Logits held at a time by the chunked cross-entropy, in values (64 MiB). The head is read once per chunk, so a
/// chunk has to have some hundred rows to be worth it.
const LOGITS_CHUNK: usize = 16 << 20;

/// Rows of logits held at a time for a call of `rows` rows.
pub(crate) fn logits_rows(vocab: usize, rows: usize) -> usize {
    (LOGITS_CHUNK / vocab.max(1)).clamp(64, 1024).min(rows.max(1))
}

/// Values per task of the flat-buffer kernels.
const FLAT_CHUNK: usize = 1 << 15;
/// Values that are loaded between two words about it.
const LOADED: usize = 8 << 20;
/// Rows per task of the row kernels, at least.
const MIN_ROWS: usize = 8;

/// The CPU backend: f32 storage, f32 sums, all threads of the current rayon pool. Two runs give equal bits,
/// whatever the number of threads.
#[derive(Debug, Clone, Copy, Default)]
pub struct RefKernels;

type Buf = Vec<f32>;

thread_local! {
    static LOGITS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

fn fits(op: &'static str, len: usize, at: usize, rows: usize, cols: usize, ld: usize) -> Result<(), Error> {
    let end = at + if rows == 0 { 0 } else { (rows - 1) * ld + cols };
    if (rows > 1 && cols > ld) || end > len {
        return Err(Error::shape(op, format!("[{rows}, {cols}] at {at} (ld {ld}) in a buffer of {len}")));
    }
    Ok(())
}

fn view<'a>(op: &'static str, m: Mat<'a, Buf>) -> Result<cpu::MatRef<'a>, Error> {
    fits(op, m.buf.len(), m.at, m.rows, m.cols, m.ld)?;
    let v = cpu::MatRef::new(&m.buf[m.at..], m.rows, m.cols, m.ld);
    Ok(if m.transposed { v.t() } else { v })
}

/// The rows of an untransposed matrix.
fn rows<'a>(op: &'static str, m: Mat<'a, Buf>) -> Result<impl Fn(usize) -> &'a [f32] + Sync + Send, Error> {
    fits(op, m.buf.len(), m.at, m.rows, m.cols, m.ld)?;
    expect(op, !m.transposed, || "a transposed operand".into())?;
    Ok(move |i: usize| &m.buf[m.at + i * m.ld..][..m.cols])
}

/// The rows of a matrix to write, in parallel.
fn rows_mut<'a>(
    op: &'static str,
    m: MatMut<'a, Buf>,
) -> Result<impl IndexedParallelIterator<Item = &'a mut [f32]>, Error> {
    fits(op, m.buf.len(), m.at, m.rows, m.cols, m.ld)?;
    let end = m.at + if m.rows == 0 { 0 } else { (m.rows - 1) * m.ld + m.cols };
    let cols = m.cols;
    let chunks = m.buf[m.at..end].par_chunks_mut(m.ld.max(1)).with_min_len(MIN_ROWS);
    Ok(chunks.map(move |row| &mut row[..cols]))
}

fn documents(s: &Sequences) -> Vec<Document<'_>> {
    (0..s.documents())
        .map(|d| {
            let queries = s.query_rows(d);
            Document { positions: &s.query_positions()[queries.clone()], queries, keys: s.key_rows(d) }
        })
        .collect()
}

fn heads(how: &Attention<'_>) -> Heads {
    let (heads, kv_heads, dim) = (how.heads, how.kv_heads, how.head_dim);
    Heads { heads, kv_heads, dim, window: how.window.unwrap_or(usize::MAX / 2) }
}

fn heads_ref<'a>(op: &'static str, m: Mat<'a, Buf>) -> Result<HeadsRef<'a>, Error> {
    fits(op, m.buf.len(), m.at, m.rows, m.cols, m.ld)?;
    expect(op, !m.transposed, || "a transposed operand".into())?;
    Ok(HeadsRef { data: &m.buf[m.at..], ld: m.ld })
}

/// The values of a gradient to write from its first on, and its leading dimension.
fn gradient<'a>(
    op: &'static str,
    m: MatMut<'a, Buf>,
    rows: usize,
    cols: usize,
) -> Result<(&'a mut [f32], usize), Error> {
    expect(op, (m.rows, m.cols) == (rows, cols), || {
        format!("a gradient [{}, {}] where [{rows}, {cols}] is written", m.rows, m.cols)
    })?;
    fits(op, m.buf.len(), m.at, m.rows, m.cols, m.ld)?;
    Ok((&mut m.buf[m.at..], m.ld))
}

fn allocate(len: usize) -> Result<Buf, Error> {
    cpu::zeroed(len).map_err(|_| Error::OutOfMemory { bytes: len.saturating_mul(size_of::<f32>()) })
}

impl Kernels for RefKernels {
    type Buf = Buf;
    type Full = Buf;

    fn zeros(&self, len: usize) -> Result<Buf, Error> {
        allocate(len)
    }

    fn zeros_full(&self, len: usize) -> Result<Buf, Error> {
        allocate(len)
    }

    fn write(&self, values: &[f32], out: MatMut<'_, Buf>) -> Result<(), Error> {
        let cols = out.cols;
        expect("write", values.len() == out.rows * cols, || format!("{} values", values.len()))?;
        rows_mut("write", out)?
            .enumerate()
            .for_each(|(i, row)| row.copy_from_slice(&values[i * cols..][..cols]));
        Ok(())
    }

    fn read(&self, m: Mat<'_, Buf>) -> Result<Vec<f32>, Error> {
        let row = rows("read", m)?;
        Ok((0..m.rows).flat_map(|i| row(i).iter().copied()).collect())
    }

    fn write_full(&self, values: &[f32], out: &mut Buf, at: usize) -> Result<(), Error> {
        fits("write_full", out.len(), at, 1, values.len(), values.len())?;
        out[at..at + values.len()].copy_from_slice(values);
        Ok(())
    }

    fn read_full(&self, buf: &Buf) -> Result<Vec<f32>, Error> {
        Ok(buf.clone())
    }

    fn clear_full(&self, out: &mut Buf) -> Result<(), Error> {
        out.fill(0.0);
        Ok(())
    }

    fn gemm(
        &self,
        alpha: f32,
        a: Mat<'_, Buf>,
        b: Mat<'_, Buf>,
        beta: f32,
        c: MatMut<'_, Buf>,
    ) -> Result<(), Error> {
        let inner = |m: &Mat<'_, Buf>, t: bool| if m.transposed == t { m.cols } else { m.rows };
        let (m, k, n) = (inner(&a, true), inner(&a, false), inner(&b, false));
        expect("gemm", inner(&b, true) == k && c.rows == m && c.cols == n, || {
            format!("[{m}, {k}] x [{}, {n}] into [{}, {}]", inner(&b, true), c.rows, c.cols)
        })?;
        fits("gemm", c.buf.len(), c.at, c.rows, c.cols, c.ld)?;
        let (a, b) = (view("gemm", a)?, view("gemm", b)?);
        cpu::gemm(alpha, a, b, beta, cpu::MatMut::new(&mut c.buf[c.at..], c.rows, c.cols, c.ld));
        Ok(())
    }

    fn gemm_onto(
        &self,
        a: Mat<'_, Buf>,
        b: Mat<'_, Buf>,
        onto: Mat<'_, Buf>,
        out: MatMut<'_, Buf>,
    ) -> Result<(), Error> {
        let MatMut { buf, at, rows, cols, ld } = out;
        self.copy(onto, MatMut { buf: &mut *buf, at, rows, cols, ld })?;
        self.gemm(1.0, a, b, 1.0, MatMut { buf, at, rows, cols, ld })
    }

    fn gemm_full(
        &self,
        alpha: f32,
        a: Mat<'_, Buf>,
        b: Mat<'_, Buf>,
        beta: f32,
        c: MatMut<'_, Buf>,
    ) -> Result<(), Error> {
        self.gemm(alpha, a, b, beta, c)
    }

    fn cast(&self, alpha: f32, m: Mat<'_, Buf>, out: MatMut<'_, Buf>) -> Result<(), Error> {
        expect("cast", m.rows == out.rows && m.cols == out.cols, || "shapes differ".into())?;
        let src = rows("cast", m)?;
        rows_mut("cast", out)?.enumerate().for_each(|(i, row)| {
            row.copy_from_slice(src(i));
            if alpha != 1.0 {
                cpu::scale(row, alpha);
            }
        });
        Ok(())
    }

    fn clear(&self, out: MatMut<'_, Buf>) -> Result<(), Error> {
        rows_mut("clear", out)?.for_each(|row| row.fill(0.0));
        Ok(())
    }

    fn copy(&self, m: Mat<'_, Buf>, out: MatMut<'_, Buf>) -> Result<(), Error> {
        self.cast(1.0, m, out)
    }

    fn add(&self, m: Mat<'_, Buf>, out: MatMut<'_, Buf>) -> Result<(), Error> {
        expect("add", m.rows == out.rows && m.cols == out.cols, || "shapes differ".into())?;
        let src = rows("add", m)?;
        rows_mut("add", out)?.enumerate().for_each(|(i, row)| cpu::add_assign(row, src(i)));
        Ok(())
    }

    fn gather_rows(&self, m: Mat<'_, Buf>, index: &Index, out: MatMut<'_, Buf>) -> Result<(), Error> {
        let ok = index.len() == out.rows && m.cols == out.cols && index.iter().all(|&r| r < m.rows);
        expect("gather_rows", ok, || format!("{} rows of [{}, {}]", index.len(), m.rows, m.cols))?;
        let src = rows("gather_rows", m)?;
        rows_mut("gather_rows", out)?.enumerate().for_each(|(i, row)| row.copy_from_slice(src(index[i])));
        Ok(())
    }

    fn scatter_rows(&self, m: Mat<'_, Buf>, index: &Index, out: MatMut<'_, Buf>) -> Result<(), Error> {
        let ok = index.len() == m.rows && m.cols == out.cols && index.windows(2).all(|w| w[0] < w[1]);
        expect("scatter_rows", ok && index.last().is_none_or(|&r| r < out.rows), || {
            "rows must ascend".into()
        })?;
        let src = rows("scatter_rows", m)?;
        rows_mut("scatter_rows", out)?.enumerate().for_each(|(r, row)| match index.binary_search(&r) {
            Ok(i) => row.copy_from_slice(src(i)),
            Err(_) => row.fill(0.0),
        });
        Ok(())
    }

    fn dropout(
        &self,
        m: Mat<'_, Buf>,
        key: DropoutKey,
        p: f32,
        keys: &RowNames,
        out: MatMut<'_, Buf>,
    ) -> Result<(), Error> {
        let ok = m.rows == out.rows && m.cols == out.cols && keys.len() == m.rows;
        expect("dropout", ok, || "shapes differ".into())?;
        let src = rows("dropout", m)?;
        rows_mut("dropout", out)?.enumerate().for_each(|(i, row)| {
            key.mask_row(keys[i], p, row);
            cpu::mul_assign(row, src(i));
        });
        Ok(())
    }

    fn embed(&self, table: Mat<'_, Buf>, ids: &[u32], out: MatMut<'_, Buf>) -> Result<(), Error> {
        in_vocabulary(ids, table.rows)?;
        expect("embed", ids.len() == out.rows && table.cols == out.cols, || "shapes differ".into())?;
        let src = rows("embed", table)?;
        rows_mut("embed", out)?.enumerate().for_each(|(i, row)| row.copy_from_slice(src(ids[i] as usize)));
        Ok(())
    }

    fn rms_norm(
        &self,
        x: Mat<'_, Buf>,
        w: &Buf,
        eps: f32,
        y: MatMut<'_, Buf>,
        rstd: &mut Buf,
    ) -> Result<(), Error> {
        let ok = x.rows == y.rows && x.cols == y.cols && w.len() == x.cols && rstd.len() >= x.rows;
        expect("rms_norm", ok, || format!("x [{}, {}], w [{}]", x.rows, x.cols, w.len()))?;
        let n = x.rows;
        let src = rows("rms_norm", x)?;
        rows_mut("rms_norm", y)?
            .zip(rstd[..n].par_iter_mut())
            .enumerate()
            .for_each(|(i, (y, r))| *r = cpu::rms_norm_row(src(i), w, eps, y));
        Ok(())
    }

    fn rms_norm_backward(
        &self,
        dy: Mat<'_, Buf>,
        x: Mat<'_, Buf>,
        w: &Buf,
        rstd: &Buf,
        dx: MatMut<'_, Buf>,
        y: Option<MatMut<'_, Buf>>,
    ) -> Result<(), Error> {
        let ok = x.rows == dy.rows && x.rows == dx.rows && rstd.len() >= x.rows;
        let ok = ok && x.cols == w.len() && dy.cols == x.cols && dx.cols == x.cols;
        expect("rms_norm_backward", ok, || format!("x [{}, {}], w [{}]", x.rows, x.cols, w.len()))?;
        let n = x.rows;
        let (dy, x) = (rows("rms_norm_backward", dy)?, rows("rms_norm_backward", x)?);
        rows_mut("rms_norm_backward", dx)?
            .enumerate()
            .for_each(|(i, dx)| cpu::rms_norm_backward_row(dy(i), x(i), w, rstd[i], dx));
        let Some(y) = y else { return Ok(()) };
        let ok = y.rows == n && y.cols == w.len();
        expect("rms_norm_backward", ok, || format!("y [{}, {}]", y.rows, y.cols))?;
        rows_mut("rms_norm_backward", y)?
            .enumerate()
            .for_each(|(i, y)| cpu::rms_norm_scale_row(x(i), w, rstd[i], y));
        Ok(())
    }

    fn rope(
        &self,
        x: MatMut<'_, Buf>,
        positions: &Index,
        table: &RopeTable,
        inverse: bool,
    ) -> Result<(), Error> {
        expect("rope", positions.len() == x.rows && x.cols.is_multiple_of(2 * table.half()), || {
            format!("{} positions, {} columns, half head {}", positions.len(), x.cols, table.half())
        })?;
        if let Some(&position) = positions.iter().find(|&&p| p >= table.positions()) {
            return Err(Error::PositionOutOfRange { position, limit: table.positions() });
        }
        let sign = if inverse { -1.0 } else { 1.0 };
        rows_mut("rope", x)?.enumerate().for_each(|(i, row)| {
            if let Some((cos, sin)) = table.row(positions[i]) {
                cpu::rope_row(row, cos, sin, sign);
            }
        });
        Ok(())
    }

    fn attention(
        &self,
        how: Attention<'_>,
        q: Mat<'_, Buf>,
        k: Mat<'_, Buf>,
        v: Mat<'_, Buf>,
        o: MatMut<'_, Buf>,
        lse: Option<&mut Buf>,
    ) -> Result<(), Error> {
        const OP: &str = "attention";
        let s = how.sequences;
        let mut unwanted = Vec::new();
        let lse = lse.unwrap_or_else(|| {
            unwanted.resize(s.queries() * how.heads, 0.0);
            &mut unwanted
        });
        let (width, kv_width) = (how.heads * how.head_dim, how.kv_heads * how.head_dim);
        let ok = q.rows == s.queries() && o.rows == s.queries() && q.cols == width && o.cols == width;
        let ok = ok && k.rows >= s.keys() && v.rows >= s.keys() && k.cols == kv_width && v.cols == kv_width;
        let ok = ok && lse.len() >= s.queries() * how.heads && how.heads.is_multiple_of(how.kv_heads);
        expect(OP, ok, || format!("q [{}, {}], k [{}, {}]", q.rows, q.cols, k.rows, k.cols))?;
        fits(OP, o.buf.len(), o.at, o.rows, o.cols, o.ld)?;
        let (q, k, v) = (heads_ref(OP, q)?, heads_ref(OP, k)?, heads_ref(OP, v)?);
        cpu::attention(heads(&how), &documents(s), q, k, v, &mut o.buf[o.at..], o.ld, lse);
        Ok(())
    }

    fn attention_backward(
        &self,
        how: Attention<'_>,
        q: Mat<'_, Buf>,
        k: Mat<'_, Buf>,
        v: Mat<'_, Buf>,
        o: Mat<'_, Buf>,
        lse: &Buf,
        d_o: Mat<'_, Buf>,
        out: AttentionGradients<'_, Buf>,
    ) -> Result<(), Error> {
        const OP: &str = "attention_backward";
        let s = how.sequences;
        let (width, kv_width) = (how.heads * how.head_dim, how.kv_heads * how.head_dim);
        let queries = [(q.rows, q.cols), (o.rows, o.cols), (d_o.rows, d_o.cols)];
        let ok = queries.iter().all(|&x| x == (s.queries(), width));
        let ok = ok && k.rows == s.keys() && v.rows == s.keys() && k.cols == kv_width && v.cols == kv_width;
        let ok = ok && lse.len() >= s.queries() * how.heads;
        expect(OP, ok, || format!("q [{}, {}], k [{}, {}]", q.rows, q.cols, k.rows, k.cols))?;
        let out = match out {
            AttentionGradients::Apart { d_q, d_kv } => {
                let dq = gradient(OP, d_q, s.queries(), width)?;
                let dkv = gradient(OP, d_kv, s.keys(), 2 * kv_width)?;
                GradientsMut::Apart { dq: dq.0, dq_ld: dq.1, dkv: dkv.0, dkv_ld: dkv.1 }
            }
            AttentionGradients::Fused(all) => {
                expect(OP, s.queries() == s.keys(), || {
                    format!("{} queries, {} keys side by side", s.queries(), s.keys())
                })?;
                let (dqkv, ld) = gradient(OP, all, s.keys(), width + 2 * kv_width)?;
                GradientsMut::Fused { dqkv, ld }
            }
        };
        let inputs = BackwardInputs {
            q: heads_ref(OP, q)?,
            k: heads_ref(OP, k)?,
            v: heads_ref(OP, v)?,
            o: heads_ref(OP, o)?,
            lse,
            d_o: heads_ref(OP, d_o)?,
        };
        cpu::attention_backward(heads(&how), &documents(s), inputs, out);
        Ok(())
    }

    fn swiglu(&self, gate_up: Mat<'_, Buf>, h: MatMut<'_, Buf>) -> Result<(), Error> {
        let ok = gate_up.rows == h.rows && gate_up.cols == 2 * h.cols;
        expect("swiglu", ok, || format!("[{}, {}]", gate_up.rows, gate_up.cols))?;
        let src = rows("swiglu", gate_up)?;
        rows_mut("swiglu", h)?.enumerate().for_each(|(i, h)| {
            let (gate, up) = src(i).split_at(h.len());
            cpu::swiglu_row(gate, up, h);
        });
        Ok(())
    }

    fn swiglu_backward(
        &self,
        dh: Mat<'_, Buf>,
        gate_up: MatMut<'_, Buf>,
        h: MatMut<'_, Buf>,
    ) -> Result<(), Error> {
        let ok =
            dh.rows == h.rows && gate_up.rows == h.rows && gate_up.cols == 2 * h.cols && dh.cols == h.cols;
        expect("swiglu_backward", ok, || format!("[{}, {}]", gate_up.rows, gate_up.cols))?;
        let src = rows("swiglu_backward", dh)?;
        let pairs = rows_mut("swiglu_backward", gate_up)?.zip(rows_mut("swiglu_backward", h)?);
        pairs.enumerate().for_each(|(i, (gate_up, h))| {
            let (gate, up) = gate_up.split_at_mut(h.len());
            cpu::swiglu_backward_row(src(i), gate, up, h);
        });
        Ok(())
    }

    fn linear_cross_entropy(
        &self,
        x: MatMut<'_, Buf>,
        head: Mat<'_, Buf>,
        targets: &[u32],
        weight: Option<f32>,
        losses: &mut Buf,
    ) -> Result<(), Error> {
        const OP: &str = "linear_cross_entropy";
        let (n, vocab) = (x.rows, head.rows);
        let ok = targets.len() == n && head.cols == x.cols && losses.len() >= n;
        expect(OP, ok, || format!("{n} rows, {} targets", targets.len()))?;
        in_vocabulary(targets, vocab)?;
        fits(OP, x.buf.len(), x.at, x.rows, x.cols, x.ld)?;
        let head = view(OP, head)?;
        let chunk = logits_rows(vocab, n);
        // Kept from call to call: making its pages anew each step would cost more than the softmax.
        let mut logits = LOGITS.with(Cell::take);
        if logits.len() < chunk * vocab {
            logits = allocate(chunk * vocab)?;
        }
        for at in (0..n).step_by(chunk) {
            let m = chunk.min(n - at);
            let z = &mut logits[..m * vocab];
            let rows = &mut x.buf[x.at + at * x.ld..];
            let hidden = cpu::MatRef::new(rows, m, x.cols, x.ld);
            cpu::gemm(1.0, hidden, head.t(), 0.0, cpu::MatMut::new(z, m, vocab, vocab));
            z.par_chunks_mut(vocab).zip(&targets[at..at + m]).zip(&mut losses[at..at + m]).for_each(
                |((z, &t), loss)| {
                    *loss = cpu::cross_entropy_row(z, t as usize, weight.unwrap_or(0.0));
                },
            );
            if weight.is_some() {
                let dz = cpu::MatRef::new(z, m, vocab, vocab);
                cpu::gemm(1.0, dz, head, 0.0, cpu::MatMut::new(rows, m, x.cols, x.ld));
            }
        }
        LOGITS.with(|slot| slot.set(logits));
        Ok(())
    }

    fn norm(&self, x: &Buf) -> Result<f64, Error> {
        let parts: Vec<f64> = x.par_chunks(FLAT_CHUNK).map(cpu::sum_squares).collect();
        Ok(parts.iter().sum::<f64>().sqrt())
    }

    fn adamw(&self, step: AdamW, p: &mut Buf, g: &Buf, m: &mut Buf, v: &mut Buf) -> Result<(), Error> {
        let ok = p.len() == g.len() && p.len() == m.len() && p.len() == v.len();
        expect("adamw", ok, || format!("{} parameters, {} gradients", p.len(), g.len()))?;
        p.par_chunks_mut(FLAT_CHUNK)
            .zip(g.par_chunks(FLAT_CHUNK))
            .zip(m.par_chunks_mut(FLAT_CHUNK).zip(v.par_chunks_mut(FLAT_CHUNK)))
            .for_each(|((p, g), (m, v))| cpu::adamw(step, p, g, m, v));
        Ok(())
    }

    // --- loading, random weights, timing ---

    fn load(&self, from: Stored<'_>, out: MatMut<'_, Buf>, told: &mut dyn FnMut(usize)) -> Result<(), Error> {
        let MatMut { buf, at, rows, cols, ld } = out;
        fits("load", buf.len(), at, rows, cols, ld)?;
        if rows == 0 || cols == 0 {
            return Ok(());
        }
        let buf = &mut buf[at..at + (rows - 1) * ld + cols];
        let (step, task) = ((LOADED / cols).max(1), (TASK / cols).max(1));
        for (i, piece) in buf.chunks_mut(step * ld).enumerate() {
            let first = i * step * cols;
            let tasks = piece.par_chunks_mut(task * ld).enumerate();
            let failed = tasks.map(|(i, rows)| from.widen(first + i * task * cols, cols, ld, rows));
            // The first in the order of the values, whichever thread comes first.
            if let Some(error) = failed.find_map_first(Result::err) {
                return Err(error);
            }
            told(piece.len().div_ceil(ld) * cols * from.of.bytes());
        }
        Ok(())
    }

    fn fill_random(&self, key: FillKey, std: f32, out: MatMut<'_, Buf>) -> Result<(), Error> {
        let cols = out.cols as u64;
        rows_mut("fill_random", out)?.enumerate().for_each(|(i, row)| key.values(std, i as u64 * cols, row));
        Ok(())
    }

    type Mark = Instant;

    fn mark(&self) -> Result<Instant, Error> {
        Ok(Instant::now())
    }

    fn between(&self, start: &Instant, end: &Instant) -> Result<Duration, Error> {
        Ok(end.duration_since(*start))
    }

    fn name(&self) -> String {
        "CPU".to_owned()
    }

    // Memory.

    fn storage(&self) -> Storage {
        Storage::CPU
    }

    fn memory(&self) -> Result<Option<DeviceMemory>, Error> {
        Ok(None)
    }

    // A training step that never waits for the device: here everything is ready at once.

    type Later = Vec<f64>;
    /// Whether all was finite.
    type Guard = bool;
    type Copies = Vec<Segment>;

    fn ahead(&self) -> usize {
        0
    }

    fn read_later(&self, buf: &Buf, range: Range<usize>) -> Result<Vec<f64>, Error> {
        let values = buf.get(range.clone());
        let values =
            values.ok_or_else(|| Error::shape("read_later", format!("{range:?} of {}", buf.len())))?;
        Ok(values.iter().copied().map(f64::from).collect())
    }

    fn wait(&self, later: Vec<f64>) -> Result<Vec<f64>, Error> {
        Ok(later)
    }

    fn guard(&self) -> Result<bool, Error> {
        Ok(true)
    }

    fn clear_guard(&self, guard: &mut bool) -> Result<(), Error> {
        *guard = true;
        Ok(())
    }

    fn watch(&self, losses: &Buf, n: usize, guard: &mut bool) -> Result<(), Error> {
        expect("watch", losses.len() >= n, || format!("{n} losses of {}", losses.len()))?;
        *guard &= losses[..n].iter().all(|loss| loss.is_finite());
        Ok(())
    }

    fn copies(&self, n: usize, to: &[&Buf], segments: &[Segment]) -> Result<Vec<Segment>, Error> {
        for s in segments {
            expect("copies", s.to < to.len() && s.start + s.rows * s.cols <= n, || {
                format!("{s:?} of {n} parameters and {} buffers", to.len())
            })?;
            fits("copies", to[s.to].len(), s.at, s.rows, s.cols, s.ld)?;
        }
        Ok(segments.to_vec())
    }

    fn clip_and_update(
        &self,
        step: AdamW,
        max_norm: Option<f64>,
        guard: &mut bool,
        flat: Flat<'_, Buf>,
        refresh: Refresh<'_, '_, Self>,
    ) -> Result<Vec<f64>, Error> {
        let norm = self.norm(flat.g)?;
        let factor = max_norm.map_or(1.0, |limit| (limit / (norm + 1e-6)).min(1.0));
        *guard &= norm.is_finite();
        if *guard {
            let step = AdamW { grad_scale: step.grad_scale * factor as f32, ..step };
            self.adamw(step, flat.p, flat.g, flat.m, flat.v)?;
            for s in refresh.copies {
                let buffers = refresh.to.len();
                let Some(buf) = refresh.to.get_mut(s.to) else {
                    return Err(Error::shape("clip_and_update", format!("{s:?} with {buffers} buffers")));
                };
                self.copy_segment(flat.p, s, buf)?;
            }
        }
        Ok(vec![norm, factor, f64::from(u8::from(*guard))])
    }
}
