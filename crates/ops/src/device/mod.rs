//! [`DeviceKernels`]: the kernels of `kernels/cuda` on whatever runs them.

pub(crate) mod bytes;
mod load;
mod memo;
mod scratch;
mod update;
mod views;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tunesmith_kernels::gpu::attention::{self, Documents, Gradients, Heads, Inputs, Plan, Room};
use tunesmith_kernels::gpu::attention_decode::{self, Context, Contexts};
use tunesmith_kernels::gpu::{
    Driver, Later, Slice, View, ViewMut, adamw, bf16, cross_entropy, dropout, fill, gemm, norm, rms_norm,
    rope, rows, swiglu,
};

use crate::error::{expect, in_vocabulary};
use crate::kernels::{Attention, AttentionGradients, Flat, Kernels, Refresh};
use crate::{
    AdamW, DeviceMemory, DropoutKey, Error, FillKey, Index, Mat, MatMut, RopeTable, RowNames, Segment,
    Sequences, Storage, Stored,
};
use memo::Memo;
use scratch::Scratch;
use update::Guard;
use views::{factor, host, view, view_mut};

/// Logits held at a time by the chunked cross-entropy, in values (512 MB at most): enough rows to keep the products
/// efficient at any vocabulary.
const LOGITS_CHUNK: usize = 256 << 20;
/// Rows of logits held at a time, at most.
const LOGITS_ROWS: usize = 4096;

/// Rows of logits held at a time for a call of `rows` rows.
fn logits_rows(vocab: usize, rows: usize) -> usize {
    (LOGITS_CHUNK / vocab.max(1)).clamp(1, LOGITS_ROWS).min(rows.max(1))
}

/// New tokens of a document up to which the kernel for a cache is used: the other one computes tiles of 128 of them.
const FEW_QUERIES: usize = 8;

/// The kernels of `kernels/cuda` on a device: bf16 storage of activations and frozen weights, f32 sums, f32 LoRA
/// parameters, gradients and moments. The device is a GPU (`CudaKernels`, with feature `cuda`) or the emulator of
/// the tests.
///
/// Two runs give equal bits. Work is queued; only what hands values to the host waits for it.
///
/// What a batch brings with it (ids, positions, tiles: some 200 kB) goes to the device through page-locked memory in the same
/// queue: a queue of its own for copies would save microseconds of a step of a hundred milliseconds, and with one queue
/// any memory may be used again at once.
#[derive(Debug)]
pub struct DeviceKernels<D: Driver> {
    d: Arc<D>,
    /// The most rows that a batch was said to have: what is kept per batch is made for as many.
    reserved: AtomicUsize,
    /// With the largest of them.
    positions: Memo<(Slice<D, i32>, usize)>,
    rows: Memo<Slice<D, u32>>,
    /// By the rows' tag, with the number of rows that they are some of.
    inverse_rows: Memo<(Slice<D, i32>, usize)>,
    names: Memo<Slice<D, u32>>,
    rope: Memo<[Slice<D, f32>; 2]>,
    plans: Memo<Plan<D>>,
    contexts: Memo<Contexts<D>>,
    staging: Scratch<D, bf16>,
    logits: Scratch<D, bf16>,
    ids: Scratch<D, u32>,
    statistics: Scratch<D, f32>,
    partial_sums: Scratch<D, f64>,
}

impl<D: Driver> DeviceKernels<D> {
    /// The kernels on `d`.
    pub fn new(d: D) -> Self {
        Self::shared(Arc::new(d))
    }

    /// The kernels on a device that others use too.
    pub fn shared(d: Arc<D>) -> Self {
        Self {
            d,
            reserved: AtomicUsize::new(0),
            positions: Memo::default(),
            rows: Memo::default(),
            inverse_rows: Memo::default(),
            names: Memo::default(),
            rope: Memo::default(),
            plans: Memo::default(),
            contexts: Memo::default(),
            staging: Scratch::default(),
            logits: Scratch::default(),
            ids: Scratch::default(),
            statistics: Scratch::default(),
            partial_sums: Scratch::default(),
        }
    }

    /// The device.
    pub fn driver(&self) -> &D {
        &self.d
    }

    /// Room for a batch of `rows` rows, or of as many as were reserved.
    fn room(&self, rows: usize) -> usize {
        rows.max(self.reserved.load(Ordering::Relaxed))
    }

    fn plan(&self, sequences: &Sequences) -> Result<Arc<Plan<D>>, Error> {
        self.plans.get(sequences.tag(), |old| {
            let (cu_queries, cu_keys) = sequences.boundaries();
            let documents = Documents { cu_queries, cu_keys, positions: sequences.query_positions() };
            // However the rows are cut into documents, there are no more tiles than rows.
            let rows = self.room(sequences.keys());
            let room = Room { queries: rows, keys: rows, documents: rows };
            Ok(Plan::in_memory_of(old, &*self.d, documents, room)?)
        })
    }

    fn contexts(&self, sequences: &Sequences) -> Result<Arc<Contexts<D>>, Error> {
        self.contexts.get(sequences.tag(), |old| {
            let of = |document: usize| {
                let start = sequences.key_rows(document).start;
                let positions = &sequences.query_positions()[sequences.query_rows(document)];
                positions.iter().map(move |p| Context { start, keys: p + 1 })
            };
            let contexts: Vec<Context> = (0..sequences.documents()).flat_map(of).collect();
            Ok(Contexts::in_memory_of(old, &*self.d, self.room(contexts.len()), &contexts)?)
        })
    }

    /// Rows on the device, in the memory of an older batch's.
    fn uploaded(&self, old: Option<Slice<D, u32>>, rows: &Index) -> Result<Slice<D, u32>, Error> {
        let rows: Vec<u32> = rows.iter().map(|&r| r as u32).collect();
        Ok(Slice::in_memory_of(old, &*self.d, self.room(rows.len()), &rows)?)
    }
}

fn heads(how: &Attention<'_>) -> Heads {
    let (heads, kv_heads, head_dim, window) = (how.heads, how.kv_heads, how.head_dim, how.window);
    Heads { heads, kv_heads, head_dim, window }
}

impl<D: Driver> Kernels for DeviceKernels<D> {
    type Buf = Slice<D, bf16>;
    type Full = Slice<D, f32>;

    fn zeros(&self, len: usize) -> Result<Self::Buf, Error> {
        Ok(Slice::zeros(&*self.d, len)?)
    }

    fn zeros_full(&self, len: usize) -> Result<Self::Full, Error> {
        Ok(Slice::zeros(&*self.d, len)?)
    }

    fn write(&self, values: &[f32], out: MatMut<'_, Self::Buf>) -> Result<(), Error> {
        let d = &*self.d;
        expect("write", values.len() == out.rows * out.cols, || format!("{} values", values.len()))?;
        if out.rows <= 1 || out.cols == out.ld {
            return Ok(out.buf.write(d, out.at, &host(values))?);
        }
        self.staging.with(d, values.len(), |staging| {
            staging.write(d, 0, &host(values))?;
            let m = View::new(&*staging, out.rows, out.cols, out.cols);
            Ok(rows::copy(d, m, view_mut(out))?)
        })
    }

    fn read(&self, m: Mat<'_, Self::Buf>) -> Result<Vec<f32>, Error> {
        let (d, n) = (&*self.d, m.rows * m.cols);
        expect("read", !m.transposed, || "a transposed operand".into())?;
        let wide = |values: Vec<bf16>| values.iter().map(|v| v.to_f32()).collect();
        if m.rows <= 1 || m.cols == m.ld {
            return Ok(wide(m.buf.read(d, m.at..m.at + n)?));
        }
        self.staging.with(d, n, |staging| {
            rows::copy(d, view("read", m)?, ViewMut::new(staging, m.rows, m.cols, m.cols))?;
            Ok(wide(staging.read(d, 0..n)?))
        })
    }

    fn write_full(&self, values: &[f32], out: &mut Self::Full, at: usize) -> Result<(), Error> {
        Ok(out.write(&*self.d, at, values)?)
    }

    fn read_full(&self, buf: &Self::Full) -> Result<Vec<f32>, Error> {
        Ok(buf.to_host(&*self.d)?)
    }

    fn clear_full(&self, out: &mut Self::Full) -> Result<(), Error> {
        Ok(out.clear(&*self.d)?)
    }

    fn gemm(
        &self,
        alpha: f32,
        a: Mat<'_, Self::Buf>,
        b: Mat<'_, Self::Buf>,
        beta: f32,
        c: MatMut<'_, Self::Buf>,
    ) -> Result<(), Error> {
        Ok(gemm::gemm(&*self.d, alpha, factor(a), factor(b), beta, view_mut(c))?)
    }

    fn gemm_onto(
        &self,
        a: Mat<'_, Self::Buf>,
        b: Mat<'_, Self::Buf>,
        onto: Mat<'_, Self::Buf>,
        out: MatMut<'_, Self::Buf>,
    ) -> Result<(), Error> {
        Ok(gemm::gemm_onto(&*self.d, factor(a), factor(b), view("gemm_onto", onto)?, view_mut(out))?)
    }

    fn gemm_full(
        &self,
        alpha: f32,
        a: Mat<'_, Self::Buf>,
        b: Mat<'_, Self::Buf>,
        beta: f32,
        c: MatMut<'_, Self::Full>,
    ) -> Result<(), Error> {
        Ok(gemm::gemm(&*self.d, alpha, factor(a), factor(b), beta, view_mut(c))?)
    }

    fn cast(&self, alpha: f32, m: Mat<'_, Self::Full>, out: MatMut<'_, Self::Buf>) -> Result<(), Error> {
        Ok(rows::narrow(&*self.d, alpha, view("cast", m)?, view_mut(out))?)
    }

    fn clear(&self, out: MatMut<'_, Self::Buf>) -> Result<(), Error> {
        Ok(rows::clear(&*self.d, view_mut(out))?)
    }

    fn copy(&self, m: Mat<'_, Self::Buf>, out: MatMut<'_, Self::Buf>) -> Result<(), Error> {
        Ok(rows::copy(&*self.d, view("copy", m)?, view_mut(out))?)
    }

    fn add(&self, m: Mat<'_, Self::Buf>, out: MatMut<'_, Self::Buf>) -> Result<(), Error> {
        Ok(rows::add(&*self.d, view("add", m)?, view_mut(out))?)
    }

    fn gather_rows(
        &self,
        m: Mat<'_, Self::Buf>,
        index: &Index,
        out: MatMut<'_, Self::Buf>,
    ) -> Result<(), Error> {
        const OP: &str = "gather_rows";
        let ok = index.len() == out.rows && index.iter().all(|&r| r < m.rows);
        expect(OP, ok, || format!("{} rows of [{}, {}]", index.len(), m.rows, m.cols))?;
        let index = self.rows.get(index.tag(), |old| self.uploaded(old, index))?;
        Ok(rows::gather(&*self.d, view(OP, m)?, &index, view_mut(out))?)
    }

    fn scatter_rows(
        &self,
        m: Mat<'_, Self::Buf>,
        index: &Index,
        out: MatMut<'_, Self::Buf>,
    ) -> Result<(), Error> {
        const OP: &str = "scatter_rows";
        expect(OP, index.len() == m.rows, || format!("{} rows of [{}, {}]", index.len(), m.rows, m.cols))?;
        let d = &*self.d;
        let make = |old: Option<(Slice<D, i32>, usize)>| {
            let inverse = rows::inverse(index, out.rows)?;
            let old = old.map(|(slice, _)| slice);
            Ok((Slice::in_memory_of(old, d, self.room(out.rows), &inverse)?, out.rows))
        };
        let mut inverse = self.inverse_rows.get(index.tag(), make)?;
        if inverse.1 != out.rows {
            // The same rows of another number of rows.
            inverse = Arc::new(make(None)?);
        }
        Ok(rows::scatter(d, view(OP, m)?, &inverse.0, view_mut(out))?)
    }

    fn dropout(
        &self,
        m: Mat<'_, Self::Buf>,
        key: DropoutKey,
        p: f32,
        names: &RowNames,
        out: MatMut<'_, Self::Buf>,
    ) -> Result<(), Error> {
        expect("dropout", names.len() == m.rows, || format!("{} names for {} rows", names.len(), m.rows))?;
        let d = &*self.d;
        let make = |old| {
            let room = names.as_flattened().len().max(2 * self.room(0));
            Ok(Slice::in_memory_of(old, d, room, names.as_flattened())?)
        };
        let names = self.names.get(names.tag(), make)?;
        let key = dropout::Key { seed: key.seed, step: key.step, site: key.site };
        Ok(dropout::dropout(d, view("dropout", m)?, key, p, &names, view_mut(out))?)
    }

    fn embed(&self, table: Mat<'_, Self::Buf>, ids: &[u32], out: MatMut<'_, Self::Buf>) -> Result<(), Error> {
        in_vocabulary(ids, table.rows)?;
        expect("embed", ids.len() == out.rows, || format!("{} ids for {} rows", ids.len(), out.rows))?;
        let d = &*self.d;
        self.ids.with(d, self.room(ids.len()), |index| {
            index.write(d, 0, ids)?;
            Ok(rows::gather(d, view("embed", table)?, index, view_mut(out))?)
        })
    }

    fn rms_norm(
        &self,
        x: Mat<'_, Self::Buf>,
        w: &Self::Buf,
        eps: f32,
        y: MatMut<'_, Self::Buf>,
        rstd: &mut Self::Full,
    ) -> Result<(), Error> {
        Ok(rms_norm::rms_norm(&*self.d, view("rms_norm", x)?, w, eps, view_mut(y), rstd)?)
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
        let (dy, x) = (view("rms_norm_backward", dy)?, view("rms_norm_backward", x)?);
        Ok(rms_norm::rms_norm_backward(&*self.d, dy, x, w, rstd, view_mut(dx), y.map(view_mut))?)
    }

    fn rope(
        &self,
        x: MatMut<'_, Self::Buf>,
        positions: &Index,
        table: &RopeTable,
        inverse: bool,
    ) -> Result<(), Error> {
        expect("rope", positions.len() == x.rows, || {
            format!("{} positions, {} rows", positions.len(), x.rows)
        })?;
        let d = &*self.d;
        let known = self.positions.get(positions.tag(), |old| {
            let largest = positions.iter().copied().max().unwrap_or(0);
            let positions: Vec<i32> = positions.iter().map(|&p| p as i32).collect();
            let old = old.map(|(slice, _)| slice);
            Ok((Slice::in_memory_of(old, d, self.room(positions.len()), &positions)?, largest))
        })?;
        let (positions, largest) = (&known.0, known.1);
        if largest >= table.positions() && !positions.is_empty() {
            return Err(Error::PositionOutOfRange { position: largest, limit: table.positions() });
        }
        let angles = self.rope.get(table.tag(), |_| {
            let (cos, sin) = table.values();
            Ok([Slice::from_host(d, cos)?, Slice::from_host(d, sin)?])
        })?;
        let [cos, sin] = &*angles;
        let table = rope::Table { cos, sin, half: table.half() };
        Ok(rope::rope(d, view_mut(x), positions, largest, table, inverse)?)
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
        const OP: &str = "attention";
        let (d, h, s) = (&*self.d, heads(&how), how.sequences);
        let (q, k, v, o) = (view(OP, q)?, view(OP, k)?, view(OP, v)?, view_mut(o));
        if let Some(lse) = lse {
            return Ok(attention::forward(d, &*self.plan(s)?, h, q, k, v, o, lse)?);
        }
        if s.queries() <= FEW_QUERIES * s.documents() {
            let contexts = self.contexts(s)?;
            let scratch = attention_decode::scratch(d.limits(), s.queries(), s.keys(), h);
            return self.statistics.with(d, scratch, |scratch| {
                Ok(attention_decode::attention_decode(d, &contexts, h, q, k, v, scratch, o)?)
            });
        }
        let plan = self.plan(s)?;
        let len = self.room(s.queries()) * how.heads;
        self.statistics.with(d, len, |lse| Ok(attention::forward(d, &plan, h, q, k, v, o, lse)?))
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
        const OP: &str = "attention_backward";
        let plan = self.plan(how.sequences)?;
        let inputs = Inputs {
            q: view(OP, q)?,
            k: view(OP, k)?,
            v: view(OP, v)?,
            o: view(OP, o)?,
            lse,
            d_o: view(OP, d_o)?,
        };
        let out = match out {
            AttentionGradients::Apart { d_q, d_kv } => {
                Gradients::Apart { dq: view_mut(d_q), dkv: view_mut(d_kv) }
            }
            AttentionGradients::Fused(all) => Gradients::Fused(view_mut(all)),
        };
        let scratch = attention::backward_scratch(self.room(how.sequences.queries()), how.heads);
        self.statistics.with(&*self.d, scratch, |scratch| {
            Ok(attention::backward(&*self.d, &plan, heads(&how), inputs, scratch, out)?)
        })
    }

    fn swiglu(&self, gate_up: Mat<'_, Self::Buf>, h: MatMut<'_, Self::Buf>) -> Result<(), Error> {
        Ok(swiglu::swiglu(&*self.d, view("swiglu", gate_up)?, view_mut(h))?)
    }

    fn swiglu_backward(
        &self,
        dh: Mat<'_, Self::Buf>,
        gate_up: MatMut<'_, Self::Buf>,
        h: MatMut<'_, Self::Buf>,
    ) -> Result<(), Error> {
        let dh = view("swiglu_backward", dh)?;
        Ok(swiglu::swiglu_backward(&*self.d, dh, view_mut(gate_up), view_mut(h))?)
    }

    fn linear_cross_entropy(
        &self,
        x: MatMut<'_, Self::Buf>,
        head: Mat<'_, Self::Buf>,
        targets: &[u32],
        weight: Option<f32>,
        losses: &mut Self::Full,
    ) -> Result<(), Error> {
        const OP: &str = "linear_cross_entropy";
        let (d, vocab) = (&*self.d, head.rows);
        in_vocabulary(targets, vocab)?;
        expect(OP, targets.len() == x.rows, || format!("{} targets for {} rows", targets.len(), x.rows))?;
        let head = view(OP, head)?;
        let chunk = logits_rows(vocab, self.room(x.rows));
        self.ids.with(d, self.room(targets.len()), |ids| {
            ids.write(d, 0, targets)?;
            self.logits.with(d, chunk * vocab.next_multiple_of(8), |logits| {
                let x = view_mut(x);
                Ok(cross_entropy::linear_cross_entropy(d, x, head, ids, weight, losses, logits)?)
            })
        })
    }

    fn norm(&self, x: &Self::Full) -> Result<f64, Error> {
        let d = &*self.d;
        self.partial_sums.with(d, norm::PARTIALS, |partials| {
            self.statistics.with(d, norm::OUT, |out| {
                norm::norm(d, x, None, partials, out)?;
                Ok(f64::from(out.read(d, 0..1)?[0]))
            })
        })
    }

    fn adamw(
        &self,
        step: AdamW,
        p: &mut Self::Full,
        g: &Self::Full,
        m: &mut Self::Full,
        v: &mut Self::Full,
    ) -> Result<(), Error> {
        Ok(adamw::update(&*self.d, step, p, g, m, v)?)
    }

    // --- loading, random weights, timing ---

    fn load(
        &self,
        from: Stored<'_>,
        out: MatMut<'_, Self::Buf>,
        told: &mut dyn FnMut(usize),
    ) -> Result<(), Error> {
        load::load(&*self.d, from, out, told)
    }

    fn fill_random(&self, key: FillKey, std: f32, out: MatMut<'_, Self::Buf>) -> Result<(), Error> {
        let key = fill::Key { seed: key.seed, tensor: key.tensor };
        Ok(fill::fill_random(&*self.d, key, std, view_mut(out))?)
    }

    type Mark = D::Mark;

    fn mark(&self) -> Result<D::Mark, Error> {
        Ok(self.d.mark()?)
    }

    fn between(&self, start: &D::Mark, end: &D::Mark) -> Result<Duration, Error> {
        Ok(self.d.between(start, end)?)
    }

    fn name(&self) -> String {
        self.d.name()
    }

    // Memory.

    fn storage(&self) -> Storage {
        Storage::DEVICE
    }

    fn memory(&self) -> Result<Option<DeviceMemory>, Error> {
        Ok(self.d.device_memory()?)
    }

    // A training step that never waits for the device, and allocates nothing after its first.

    type Later = Later<D, f32>;
    type Guard = Guard<D>;
    type Copies = adamw::Copies<D>;

    fn ahead(&self) -> usize {
        // While one is under way the next is queued; more would only let the host hear later of what went wrong.
        1
    }

    fn reserve(&self, rows: usize) {
        self.reserved.fetch_max(rows, Ordering::Relaxed);
    }

    fn tune(&self, on: bool) {
        self.d.tune(on);
    }

    fn read_later(&self, buf: &Self::Full, range: Range<usize>) -> Result<Self::Later, Error> {
        Ok(buf.read_later(&*self.d, range)?)
    }

    fn wait(&self, later: Self::Later) -> Result<Vec<f64>, Error> {
        Ok(later.wait(&*self.d)?.into_iter().map(f64::from).collect())
    }

    fn guard(&self) -> Result<Self::Guard, Error> {
        Guard::new(&*self.d)
    }

    fn clear_guard(&self, guard: &mut Self::Guard) -> Result<(), Error> {
        guard.clear(&*self.d)
    }

    fn watch(&self, losses: &Self::Full, n: usize, guard: &mut Self::Guard) -> Result<(), Error> {
        guard.watch(&*self.d, losses, n)
    }

    fn copies(&self, n: usize, to: &[&Self::Buf], segments: &[Segment]) -> Result<Self::Copies, Error> {
        Ok(adamw::Copies::new(&*self.d, n, to, segments)?)
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
        guard.clip_and_update(&*self.d, step, max_norm, flat, adamw::Refresh { copies, to })
    }
}
