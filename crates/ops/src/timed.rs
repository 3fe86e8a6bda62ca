//! [`Timed`]: any kernels, with the time that each operation takes.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::kernels::{Attention, AttentionGradients, Flat, Kernels, Refresh};
use crate::{
    AdamW, DeviceMemory, DropoutKey, Error, FillKey, Index, Mat, MatMut, RopeTable, RowNames, Segment,
    Storage, Stored,
};

/// A part of a training step, told by the operation that it begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// From the embedding on.
    Forward,
    /// The output head with the loss and its gradient.
    Head,
    /// From there on, with what is computed again.
    Backward,
    /// Norm of the gradient, clipping, the optimizer, and clearing the gradient for the next step.
    Update,
}

impl Phase {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Head => "head",
            Self::Backward => "backward",
            Self::Update => "update",
        }
    }
}

/// The time of one operation in one part of the step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OpTime {
    /// Which part.
    pub phase: Phase,
    /// The method of [`Kernels`]. `gemm, skinny` is a product with one side at most an eighth of the next: low rank.
    pub op: &'static str,
    /// How often it was called.
    pub calls: usize,
    /// The device's time for all calls.
    pub time: Duration,
}

/// What was timed between [`Timed::start`] and [`Timed::stop`].
#[derive(Debug, Clone, PartialEq)]
pub struct Times {
    /// From the one to the other on the device.
    pub total: Duration,
    /// The longest first. They do not overlap: what they leave of the total, the device spent between operations.
    pub ops: Vec<OpTime>,
}

/// Kernels that can be told to time every operation. The marks cost a little: what is timed so is a little slower.
#[derive(Debug)]
pub struct Timed<K: Kernels> {
    inner: K,
    record: Mutex<Option<Record<K::Mark>>>,
}

#[derive(Debug)]
struct Record<M> {
    start: M,
    phase: Phase,
    spans: Vec<Span<M>>,
}

#[derive(Debug)]
struct Span<M> {
    phase: Phase,
    op: &'static str,
    start: M,
    end: M,
}

impl<K: Kernels> Timed<K> {
    /// The kernels as they are, until [`Timed::start`].
    pub fn new(inner: K) -> Self {
        Self { inner, record: Mutex::new(None) }
    }

    /// The kernels themselves.
    pub fn inner(&self) -> &K {
        &self.inner
    }

    /// Times every operation from here on.
    ///
    /// # Errors
    /// If the device fails.
    pub fn start(&self) -> Result<(), Error> {
        let start = self.inner.mark()?;
        *self.record() = Some(Record { start, phase: Phase::Update, spans: Vec::new() });
        Ok(())
    }

    /// Stops timing; gives what was timed since the start, or nothing where there was none.
    ///
    /// # Errors
    /// If the device fails.
    pub fn stop(&self) -> Result<Times, Error> {
        let Some(record) = self.record().take() else {
            return Ok(Times { total: Duration::ZERO, ops: Vec::new() });
        };
        let total = self.inner.between(&record.start, &self.inner.mark()?)?;
        let mut ops: Vec<OpTime> = Vec::new();
        for Span { phase, op, start, end } in &record.spans {
            let time = self.inner.between(start, end)?;
            match ops.iter_mut().find(|known| (known.phase, known.op) == (*phase, *op)) {
                Some(known) => {
                    known.calls += 1;
                    known.time += time;
                }
                None => ops.push(OpTime { phase: *phase, op, calls: 1, time }),
            }
        }
        ops.sort_by_key(|op| std::cmp::Reverse(op.time));
        Ok(Times { total, ops })
    }

    fn record(&self) -> MutexGuard<'_, Option<Record<K::Mark>>> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn op<R>(&self, op: &'static str, f: impl FnOnce(&K) -> Result<R, Error>) -> Result<R, Error> {
        let phase = match &mut *self.record() {
            None => None,
            Some(record) => {
                record.phase = match op {
                    "embed" => Phase::Forward,
                    "linear_cross_entropy" => Phase::Head,
                    "norm" | "adamw" | "clip_and_update" => Phase::Update,
                    _ => record.phase,
                };
                Some(record.phase)
            }
        };
        let Some(phase) = phase else { return f(&self.inner) };
        let start = self.inner.mark()?;
        let out = f(&self.inner)?;
        let end = self.inner.mark()?;
        if let Some(record) = &mut *self.record() {
            record.spans.push(Span { phase, op, start, end });
            if op == "linear_cross_entropy" {
                record.phase = Phase::Backward;
            }
        }
        Ok(out)
    }
}

/// Whether one of the three sides of a product is at most an eighth of the next longer one.
fn is_skinny<B>(a: &Mat<'_, B>, b: &Mat<'_, B>, c: &MatMut<'_, B>) -> bool {
    let depth = if a.transposed { a.rows } else { a.cols };
    let mut sides = [c.rows, if b.transposed { b.rows } else { b.cols }, depth];
    sides.sort_unstable();
    sides[0] * 8 <= sides[1]
}

impl<K: Kernels> Kernels for Timed<K> {
    type Buf = K::Buf;
    type Full = K::Full;
    type Mark = K::Mark;
    type Later = K::Later;
    type Guard = K::Guard;
    type Copies = K::Copies;

    fn zeros(&self, len: usize) -> Result<Self::Buf, Error> {
        self.inner.zeros(len)
    }

    fn zeros_full(&self, len: usize) -> Result<Self::Full, Error> {
        self.inner.zeros_full(len)
    }

    fn write(&self, values: &[f32], out: MatMut<'_, Self::Buf>) -> Result<(), Error> {
        self.op("write", |inner| inner.write(values, out))
    }

    fn read(&self, m: Mat<'_, Self::Buf>) -> Result<Vec<f32>, Error> {
        self.op("read", |inner| inner.read(m))
    }

    fn write_full(&self, values: &[f32], out: &mut Self::Full, at: usize) -> Result<(), Error> {
        self.op("write_full", |inner| inner.write_full(values, out, at))
    }

    fn read_full(&self, buf: &Self::Full) -> Result<Vec<f32>, Error> {
        self.op("read_full", |inner| inner.read_full(buf))
    }

    fn clear_full(&self, out: &mut Self::Full) -> Result<(), Error> {
        self.op("clear_full", |inner| inner.clear_full(out))
    }

    fn gemm(
        &self,
        alpha: f32,
        a: Mat<'_, Self::Buf>,
        b: Mat<'_, Self::Buf>,
        beta: f32,
        c: MatMut<'_, Self::Buf>,
    ) -> Result<(), Error> {
        let name = if is_skinny(&a, &b, &c) { "gemm, skinny" } else { "gemm" };
        self.op(name, |inner| inner.gemm(alpha, a, b, beta, c))
    }

    fn gemm_onto(
        &self,
        a: Mat<'_, Self::Buf>,
        b: Mat<'_, Self::Buf>,
        onto: Mat<'_, Self::Buf>,
        out: MatMut<'_, Self::Buf>,
    ) -> Result<(), Error> {
        self.op("gemm_onto", |inner| inner.gemm_onto(a, b, onto, out))
    }

    fn gemm_full(
        &self,
        alpha: f32,
        a: Mat<'_, Self::Buf>,
        b: Mat<'_, Self::Buf>,
        beta: f32,
        c: MatMut<'_, Self::Full>,
    ) -> Result<(), Error> {
        self.op("gemm_full", |inner| inner.gemm_full(alpha, a, b, beta, c))
    }

    fn cast(&self, alpha: f32, m: Mat<'_, Self::Full>, out: MatMut<'_, Self::Buf>) -> Result<(), Error> {
        self.op("cast", |inner| inner.cast(alpha, m, out))
    }

    fn clear(&self, out: MatMut<'_, Self::Buf>) -> Result<(), Error> {
        self.op("clear", |inner| inner.clear(out))
    }

    fn copy(&self, m: Mat<'_, Self::Buf>, out: MatMut<'_, Self::Buf>) -> Result<(), Error> {
        self.op("copy", |inner| inner.copy(m, out))
    }

    fn add(&self, m: Mat<'_, Self::Buf>, out: MatMut<'_, Self::Buf>) -> Result<(), Error> {
        self.op("add", |inner| inner.add(m, out))
    }

    fn gather_rows(
        &self,
        m: Mat<'_, Self::Buf>,
        rows: &Index,
        out: MatMut<'_, Self::Buf>,
    ) -> Result<(), Error> {
        self.op("gather_rows", |inner| inner.gather_rows(m, rows, out))
    }

    fn scatter_rows(
        &self,
        m: Mat<'_, Self::Buf>,
        rows: &Index,
        out: MatMut<'_, Self::Buf>,
    ) -> Result<(), Error> {
        self.op("scatter_rows", |inner| inner.scatter_rows(m, rows, out))
    }

    fn dropout(
        &self,
        m: Mat<'_, Self::Buf>,
        key: DropoutKey,
        p: f32,
        rows: &RowNames,
        out: MatMut<'_, Self::Buf>,
    ) -> Result<(), Error> {
        self.op("dropout", |inner| inner.dropout(m, key, p, rows, out))
    }

    fn embed(&self, table: Mat<'_, Self::Buf>, ids: &[u32], out: MatMut<'_, Self::Buf>) -> Result<(), Error> {
        self.op("embed", |inner| inner.embed(table, ids, out))
    }

    fn rms_norm(
        &self,
        x: Mat<'_, Self::Buf>,
        w: &Self::Buf,
        eps: f32,
        y: MatMut<'_, Self::Buf>,
        rstd: &mut Self::Full,
    ) -> Result<(), Error> {
        self.op("rms_norm", |inner| inner.rms_norm(x, w, eps, y, rstd))
    }

    fn rms_norm_backward(
        &self,
        dy: Mat<'_, Self::Buf>,
        x: Mat<'_, Self::Buf>,
        w: &Self::Buf,
        rstd: &Self::Full,
        dx: MatMut<'_, Self::Buf>,
        y: Option<MatMut<'_, Self::Buf>>,
    ) -> Result<(), Error> {
        self.op("rms_norm_backward", |inner| inner.rms_norm_backward(dy, x, w, rstd, dx, y))
    }

    fn rope(
        &self,
        x: MatMut<'_, Self::Buf>,
        positions: &Index,
        table: &RopeTable,
        inverse: bool,
    ) -> Result<(), Error> {
        self.op("rope", |inner| inner.rope(x, positions, table, inverse))
    }

    fn attention(
        &self,
        how: Attention<'_>,
        q: Mat<'_, Self::Buf>,
        k: Mat<'_, Self::Buf>,
        v: Mat<'_, Self::Buf>,
        o: MatMut<'_, Self::Buf>,
        lse: Option<&mut Self::Full>,
    ) -> Result<(), Error> {
        self.op("attention", |inner| inner.attention(how, q, k, v, o, lse))
    }

    fn attention_backward(
        &self,
        how: Attention<'_>,
        q: Mat<'_, Self::Buf>,
        k: Mat<'_, Self::Buf>,
        v: Mat<'_, Self::Buf>,
        o: Mat<'_, Self::Buf>,
        lse: &Self::Full,
        d_o: Mat<'_, Self::Buf>,
        out: AttentionGradients<'_, Self::Buf>,
    ) -> Result<(), Error> {
        self.op("attention_backward", |inner| inner.attention_backward(how, q, k, v, o, lse, d_o, out))
    }

    fn swiglu(&self, gate_up: Mat<'_, Self::Buf>, h: MatMut<'_, Self::Buf>) -> Result<(), Error> {
        self.op("swiglu", |inner| inner.swiglu(gate_up, h))
    }

    fn swiglu_backward(
        &self,
        dh: Mat<'_, Self::Buf>,
        gate_up: MatMut<'_, Self::Buf>,
        h: MatMut<'_, Self::Buf>,
    ) -> Result<(), Error> {
        self.op("swiglu_backward", |inner| inner.swiglu_backward(dh, gate_up, h))
    }

    fn linear_cross_entropy(
        &self,
        x: MatMut<'_, Self::Buf>,
        head: Mat<'_, Self::Buf>,
        targets: &[u32],
        weight: Option<f32>,
        losses: &mut Self::Full,
    ) -> Result<(), Error> {
        self.op("linear_cross_entropy", |inner| inner.linear_cross_entropy(x, head, targets, weight, losses))
    }

    fn norm(&self, x: &Self::Full) -> Result<f64, Error> {
        self.op("norm", |inner| inner.norm(x))
    }

    fn adamw(
        &self,
        step: AdamW,
        p: &mut Self::Full,
        g: &Self::Full,
        m: &mut Self::Full,
        v: &mut Self::Full,
    ) -> Result<(), Error> {
        self.op("adamw", |inner| inner.adamw(step, p, g, m, v))
    }

    fn load(
        &self,
        from: Stored<'_>,
        out: MatMut<'_, Self::Buf>,
        told: &mut dyn FnMut(usize),
    ) -> Result<(), Error> {
        self.inner.load(from, out, told)
    }

    fn fill_random(&self, key: FillKey, std: f32, out: MatMut<'_, Self::Buf>) -> Result<(), Error> {
        self.inner.fill_random(key, std, out)
    }

    fn mark(&self) -> Result<Self::Mark, Error> {
        self.inner.mark()
    }

    fn between(&self, start: &Self::Mark, end: &Self::Mark) -> Result<Duration, Error> {
        self.inner.between(start, end)
    }

    fn name(&self) -> String {
        self.inner.name()
    }

    fn storage(&self) -> Storage {
        self.inner.storage()
    }

    fn memory(&self) -> Result<Option<DeviceMemory>, Error> {
        self.inner.memory()
    }

    fn ahead(&self) -> usize {
        self.inner.ahead()
    }

    fn reserve(&self, rows: usize) {
        self.inner.reserve(rows);
    }

    fn tune(&self, on: bool) {
        self.inner.tune(on);
    }

    fn read_later(&self, buf: &Self::Full, range: Range<usize>) -> Result<Self::Later, Error> {
        self.inner.read_later(buf, range)
    }

    fn wait(&self, later: Self::Later) -> Result<Vec<f64>, Error> {
        self.inner.wait(later)
    }

    fn guard(&self) -> Result<Self::Guard, Error> {
        self.inner.guard()
    }

    fn clear_guard(&self, guard: &mut Self::Guard) -> Result<(), Error> {
        self.inner.clear_guard(guard)
    }

    fn watch(&self, losses: &Self::Full, n: usize, guard: &mut Self::Guard) -> Result<(), Error> {
        self.op("watch", |inner| inner.watch(losses, n, guard))
    }

    fn copies(&self, n: usize, to: &[&Self::Buf], segments: &[Segment]) -> Result<Self::Copies, Error> {
        self.inner.copies(n, to, segments)
    }

    fn clip_and_update(
        &self,
        step: AdamW,
        max_norm: Option<f64>,
        guard: &mut Self::Guard,
        flat: Flat<'_, Self::Full>,
        refresh: Refresh<'_, '_, Self>,
    ) -> Result<Self::Later, Error> {
        let Refresh { copies, to } = refresh;
        self.op("clip_and_update", |inner| {
            inner.clip_and_update(step, max_norm, guard, flat, Refresh { copies, to })
        })
    }
}
