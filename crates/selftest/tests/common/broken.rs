//! A backend with one operation that is wrong.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tunesmith_ops::{
    AdamW, Attention, AttentionGradients, DeviceError, DeviceMemory, DropoutKey, Error, FillKey, Flat, Index,
    Kernels, Mat, MatMut, Refresh, RopeTable, RowNames, Segment, Sequences, Storage, Stored,
};

type Buf = Vec<f32>;

/// What an operation does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// Its (first) output is one or three percent too large: three where attention rounds a percent away.
    Large,
    /// Its second output is.
    SecondLarge,
    /// The last value of its output is not written.
    Short,
    /// A value beside its output is written.
    Beside,
    /// A window of one key more.
    Window,
    /// Keys of the document before are seen.
    Documents,
    /// The mask is that of another place.
    Mask,
    /// Rows are those next to the right ones.
    Rows,
    /// A position further.
    Position,
    /// What is in the output before counts.
    Reads,
    /// What is in the output before does not count.
    Forgets,
    /// A NaN becomes zero.
    Swallows,
    /// Another result each time.
    Wavers,
    /// Wrong ids are taken.
    Takes,
    /// The device fails.
    Fails,
}

/// Each operation, and what is wrong with it.
pub(crate) const MUTATIONS: [(&str, How); 74] = [
    ("memory", How::Large),
    ("memory", How::SecondLarge),
    ("load", How::Large),
    ("load", How::Beside),
    ("load", How::Takes),
    ("fill_random", How::Large),
    ("fill_random", How::Mask),
    ("fill_random", How::Short),
    ("clear_full", How::Short),
    ("copy", How::Large),
    ("copy", How::Short),
    ("copy", How::Beside),
    ("copy", How::Swallows),
    ("add", How::Large),
    ("add", How::Forgets),
    ("add", How::Wavers),
    ("clear", How::Short),
    ("clear", How::Beside),
    ("cast", How::Large),
    ("cast", How::Swallows),
    ("gather_rows", How::Large),
    ("gather_rows", How::Rows),
    ("scatter_rows", How::Large),
    ("scatter_rows", How::Reads),
    ("embed", How::Large),
    ("embed", How::Rows),
    ("embed", How::Takes),
    ("dropout", How::Large),
    ("dropout", How::Mask),
    ("dropout", How::Swallows),
    ("rope", How::Large),
    ("rope", How::Position),
    ("rope", How::Takes),
    ("swiglu", How::Large),
    ("swiglu", How::Swallows),
    ("swiglu_backward", How::Large),
    ("swiglu_backward", How::SecondLarge),
    ("gemm", How::Large),
    ("gemm", How::Reads),
    ("gemm", How::Forgets),
    ("gemm", How::Swallows),
    ("gemm", How::Beside),
    ("gemm", How::Wavers),
    ("gemm_onto", How::Large),
    ("gemm_onto", How::Forgets),
    ("gemm_full", How::Large),
    ("gemm_full", How::Forgets),
    ("gemm_full", How::Beside),
    ("rms_norm", How::Large),
    ("rms_norm", How::SecondLarge),
    ("rms_norm_backward", How::Large),
    ("rms_norm_backward", How::SecondLarge),
    ("rms_norm_backward", How::Forgets),
    ("attention", How::Large),
    ("attention", How::SecondLarge),
    ("attention", How::Window),
    ("attention", How::Documents),
    ("attention", How::Swallows),
    ("attention_backward", How::Large),
    ("attention_backward", How::SecondLarge),
    ("attention_backward", How::Window),
    ("linear_cross_entropy", How::Large),
    ("linear_cross_entropy", How::SecondLarge),
    ("linear_cross_entropy", How::Takes),
    ("norm", How::Large),
    ("adamw", How::Large),
    ("adamw", How::SecondLarge),
    ("clip_and_update", How::Large),
    ("clip_and_update", How::SecondLarge),
    ("clip_and_update", How::Position),
    ("clip_and_update", How::Forgets),
    ("clip_and_update", How::Swallows),
    ("watch", How::Forgets),
    ("read_later", How::Rows),
];

/// [`Kernels`] with one operation broken.
pub(crate) struct Broken<'a, K> {
    inner: &'a K,
    op: &'static str,
    how: How,
    calls: AtomicUsize,
}

impl<'a, K: Kernels<Buf = Buf, Full = Buf>> Broken<'a, K> {
    pub(crate) fn new(inner: &'a K, (op, how): (&'static str, How)) -> Self {
        Self { inner, op, how, calls: AtomicUsize::default() }
    }

    /// What is wrong with `op`, if it is the one.
    fn wrong(&self, op: &str) -> Option<How> {
        (self.op == op).then_some(self.how)
    }

    /// Runs an operation on its output, and spoils that.
    fn spoiled(
        &self,
        op: &str,
        mut out: MatMut<'_, Buf>,
        run: impl FnOnce(MatMut<'_, Buf>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let wrong = self.wrong(op);
        match wrong {
            Some(How::Fails) => return Err(device()),
            Some(How::Forgets) => fill(&mut out, 0.0),
            Some(How::Reads) => {
                let before = again(&mut out).values();
                run(again(&mut out))?;
                let spread = |v: f32, b: f32| if b.is_nan() { b } else { v + b };
                out.each(&before, spread);
                return Ok(());
            }
            _ => {}
        }
        let before = again(&mut out).values();
        run(again(&mut out))?;
        match wrong {
            Some(How::Large) => out.each(&before, |v, _| v * 1.03),
            Some(How::Swallows) => out.each(&before, |v, _| if v.is_nan() { 0.0 } else { v }),
            Some(How::Wavers) => {
                let calls = self.calls.fetch_add(1, Ordering::Relaxed);
                out.buf[out.at] *= 1.0 + calls as f32 / 1e3;
            }
            Some(How::Short) => {
                let last = out.at + (out.rows - 1) * out.ld + out.cols - 1;
                out.buf[last] = before.last().copied().unwrap_or_default();
            }
            Some(How::Beside) => {
                let beside = out.at + (out.rows - 1) * out.ld + out.cols;
                out.buf[beside] = 0.0;
            }
            _ => {}
        }
        Ok(())
    }
}

fn device() -> Error {
    Error::Device(DeviceError::Device { call: "made up".to_owned(), text: "for a test".to_owned() })
}

fn again<'a>(m: &'a mut MatMut<'_, Buf>) -> MatMut<'a, Buf> {
    MatMut { buf: &mut *m.buf, at: m.at, rows: m.rows, cols: m.cols, ld: m.ld }
}

fn fill(m: &mut MatMut<'_, Buf>, v: f32) {
    for row in 0..m.rows {
        let at = m.at + row * m.ld;
        m.buf[at..at + m.cols].fill(v);
    }
}

/// What the test does to a matrix on the host.
trait Host {
    fn values(self) -> Vec<f32>;
    fn each(self, before: &[f32], f: impl Fn(f32, f32) -> f32);
}

impl Host for MatMut<'_, Buf> {
    fn values(self) -> Vec<f32> {
        (0..self.rows).flat_map(|r| &self.buf[self.at + r * self.ld..][..self.cols]).copied().collect()
    }

    fn each(self, before: &[f32], f: impl Fn(f32, f32) -> f32) {
        for (i, b) in before.iter().enumerate() {
            let v = &mut self.buf[self.at + i / self.cols * self.ld + i % self.cols];
            *v = f(*v, *b);
        }
    }
}

fn scale(values: &mut [f32]) {
    values.iter_mut().for_each(|v| *v *= 1.03);
}

/// The documents of `s` as if they were one.
fn one_document(s: &Sequences) -> Sequences {
    Sequences::whole(&[s.keys()])
}

impl<K: Kernels<Buf = Buf, Full = Buf>> Kernels for Broken<'_, K> {
    type Buf = Buf;
    type Full = Buf;

    fn zeros(&self, len: usize) -> Result<Buf, Error> {
        self.inner.zeros(len)
    }
    fn zeros_full(&self, len: usize) -> Result<Buf, Error> {
        self.inner.zeros_full(len)
    }
    fn write(&self, values: &[f32], out: MatMut<'_, Buf>) -> Result<(), Error> {
        // One value of a matrix of several rows, which nothing but the memory's own check writes.
        if self.wrong("memory") == Some(How::Large) && out.rows > 1 {
            return self.inner.write(&values.iter().map(|v| v * 1.5).collect::<Vec<_>>(), out);
        }
        self.inner.write(values, out)
    }
    fn read(&self, m: Mat<'_, Buf>) -> Result<Vec<f32>, Error> {
        self.inner.read(m)
    }
    fn write_full(&self, values: &[f32], out: &mut Buf, at: usize) -> Result<(), Error> {
        let at = if self.wrong("memory") == Some(How::SecondLarge) && at > 0 { at - 1 } else { at };
        self.inner.write_full(values, out, at)
    }
    fn read_full(&self, buf: &Buf) -> Result<Vec<f32>, Error> {
        self.inner.read_full(buf)
    }
    fn clear_full(&self, out: &mut Buf) -> Result<(), Error> {
        let last = out.len() - 1;
        let kept = out[last];
        self.inner.clear_full(out)?;
        if self.wrong("clear_full").is_some() {
            out[last] = kept;
        }
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
        self.spoiled("gemm", c, |c| self.inner.gemm(alpha, a, b, beta, c))
    }
    fn gemm_onto(
        &self,
        a: Mat<'_, Buf>,
        b: Mat<'_, Buf>,
        onto: Mat<'_, Buf>,
        out: MatMut<'_, Buf>,
    ) -> Result<(), Error> {
        if self.wrong("gemm_onto") == Some(How::Forgets) {
            return self.inner.gemm(1.0, a, b, 0.0, out);
        }
        self.spoiled("gemm_onto", out, |out| self.inner.gemm_onto(a, b, onto, out))
    }
    fn gemm_full(
        &self,
        alpha: f32,
        a: Mat<'_, Buf>,
        b: Mat<'_, Buf>,
        beta: f32,
        c: MatMut<'_, Buf>,
    ) -> Result<(), Error> {
        self.spoiled("gemm_full", c, |c| self.inner.gemm_full(alpha, a, b, beta, c))
    }
    fn cast(&self, alpha: f32, m: Mat<'_, Buf>, out: MatMut<'_, Buf>) -> Result<(), Error> {
        self.spoiled("cast", out, |out| self.inner.cast(alpha, m, out))
    }
    fn clear(&self, out: MatMut<'_, Buf>) -> Result<(), Error> {
        self.spoiled("clear", out, |out| self.inner.clear(out))
    }
    fn copy(&self, m: Mat<'_, Buf>, out: MatMut<'_, Buf>) -> Result<(), Error> {
        self.spoiled("copy", out, |out| self.inner.copy(m, out))
    }
    fn add(&self, m: Mat<'_, Buf>, out: MatMut<'_, Buf>) -> Result<(), Error> {
        self.spoiled("add", out, |out| self.inner.add(m, out))
    }
    fn gather_rows(&self, m: Mat<'_, Buf>, rows: &Index, out: MatMut<'_, Buf>) -> Result<(), Error> {
        let next: Index = rows.iter().map(|r| (r + 1) % m.rows).collect();
        let rows = if self.wrong("gather_rows") == Some(How::Rows) { &next } else { rows };
        self.spoiled("gather_rows", out, |out| self.inner.gather_rows(m, rows, out))
    }
    fn scatter_rows(&self, m: Mat<'_, Buf>, rows: &Index, out: MatMut<'_, Buf>) -> Result<(), Error> {
        self.spoiled("scatter_rows", out, |out| self.inner.scatter_rows(m, rows, out))
    }
    fn dropout(
        &self,
        m: Mat<'_, Buf>,
        key: DropoutKey,
        p: f32,
        rows: &RowNames,
        out: MatMut<'_, Buf>,
    ) -> Result<(), Error> {
        let site = key.site + u32::from(self.wrong("dropout") == Some(How::Mask));
        let key = DropoutKey { site, ..key };
        self.spoiled("dropout", out, |out| self.inner.dropout(m, key, p, rows, out))
    }
    fn embed(&self, table: Mat<'_, Buf>, ids: &[u32], out: MatMut<'_, Buf>) -> Result<(), Error> {
        let rows = table.rows as u32;
        let other: Vec<u32> = match self.wrong("embed") {
            Some(How::Rows) => ids.iter().map(|id| if *id < rows { (id + 1) % rows } else { *id }).collect(),
            Some(How::Takes) => ids.iter().map(|id| id % rows).collect(),
            _ => ids.to_vec(),
        };
        self.spoiled("embed", out, |out| self.inner.embed(table, &other, out))
    }
    fn rms_norm(
        &self,
        x: Mat<'_, Buf>,
        w: &Buf,
        eps: f32,
        y: MatMut<'_, Buf>,
        rstd: &mut Buf,
    ) -> Result<(), Error> {
        self.spoiled("rms_norm", y, |y| self.inner.rms_norm(x, w, eps, y, rstd))?;
        if self.wrong("rms_norm") == Some(How::SecondLarge) {
            scale(rstd);
        }
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
        let op = "rms_norm_backward";
        self.spoiled(op, dx, |dx| match y {
            None => self.inner.rms_norm_backward(dy, x, w, rstd, dx, None),
            Some(mut y) => {
                self.inner.rms_norm_backward(dy, x, w, rstd, dx, Some(again(&mut y)))?;
                if self.wrong(op) == Some(How::SecondLarge) {
                    let before = again(&mut y).values();
                    y.each(&before, |v, _| v * 1.03);
                }
                Ok(())
            }
        })
    }
    fn rope(
        &self,
        x: MatMut<'_, Buf>,
        positions: &Index,
        table: &RopeTable,
        inverse: bool,
    ) -> Result<(), Error> {
        let moved: Index = match self.wrong("rope") {
            Some(How::Position) => {
                positions.iter().map(|p| if *p + 1 < table.positions() { p + 1 } else { *p }).collect()
            }
            Some(How::Takes) => positions.iter().map(|p| p % table.positions()).collect(),
            _ => positions.clone(),
        };
        self.spoiled("rope", x, |x| self.inner.rope(x, &moved, table, inverse))
    }
    fn attention(
        &self,
        how: Attention<'_>,
        q: Mat<'_, Buf>,
        k: Mat<'_, Buf>,
        v: Mat<'_, Buf>,
        o: MatMut<'_, Buf>,
        mut lse: Option<&mut Buf>,
    ) -> Result<(), Error> {
        let one = one_document(how.sequences);
        let is_whole = how.sequences.queries() == how.sequences.keys();
        let how = match self.wrong("attention") {
            Some(How::Window) => Attention { window: how.window.map(|w| w + 1), ..how },
            Some(How::Documents) if is_whole => Attention { sequences: &one, ..how },
            _ => how,
        };
        self.spoiled("attention", o, |o| self.inner.attention(how, q, k, v, o, lse.as_deref_mut()))?;
        if let (Some(lse), Some(How::SecondLarge)) = (lse, self.wrong("attention")) {
            scale(lse);
        }
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
        let op = "attention_backward";
        let wrong = self.wrong(op);
        let how = match wrong {
            Some(How::Window) => Attention { window: how.window.map(|w| w + 1), ..how },
            _ => how,
        };
        let run =
            |out: AttentionGradients<'_, Buf>| self.inner.attention_backward(how, q, k, v, o, lse, d_o, out);
        match out {
            AttentionGradients::Fused(all) if wrong == Some(How::Large) => {
                self.spoiled(op, all, |all| run(AttentionGradients::Fused(all)))
            }
            AttentionGradients::Apart { d_q, mut d_kv } if wrong == Some(How::SecondLarge) => {
                run(AttentionGradients::Apart { d_q, d_kv: again(&mut d_kv) })?;
                let before = again(&mut d_kv).values();
                d_kv.each(&before, |v, _| v * 1.03);
                Ok(())
            }
            other => run(other),
        }
    }
    fn swiglu(&self, gate_up: Mat<'_, Buf>, h: MatMut<'_, Buf>) -> Result<(), Error> {
        self.spoiled("swiglu", h, |h| self.inner.swiglu(gate_up, h))
    }
    fn swiglu_backward(
        &self,
        dh: Mat<'_, Buf>,
        gate_up: MatMut<'_, Buf>,
        mut h: MatMut<'_, Buf>,
    ) -> Result<(), Error> {
        let op = "swiglu_backward";
        self.spoiled(op, gate_up, |gate_up| self.inner.swiglu_backward(dh, gate_up, again(&mut h)))?;
        if self.wrong(op) == Some(How::SecondLarge) {
            let before = again(&mut h).values();
            h.each(&before, |v, _| v * 1.03);
        }
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
        let op = "linear_cross_entropy";
        let wrong = self.wrong(op);
        let other: Vec<u32> = match wrong {
            Some(How::Takes) => targets.iter().map(|t| t % head.rows as u32).collect(),
            _ => targets.to_vec(),
        };
        self.spoiled(op, x, |x| self.inner.linear_cross_entropy(x, head, &other, weight, losses))?;
        if wrong == Some(How::SecondLarge) {
            scale(losses);
        }
        Ok(())
    }
    fn norm(&self, x: &Buf) -> Result<f64, Error> {
        let norm = self.inner.norm(x)?;
        Ok(if self.wrong("norm").is_some() { norm * 1.01 } else { norm })
    }
    fn adamw(&self, step: AdamW, p: &mut Buf, g: &Buf, m: &mut Buf, v: &mut Buf) -> Result<(), Error> {
        let step = match self.wrong("adamw") {
            Some(How::Large) => AdamW { lr: step.lr * 1.01, ..step },
            Some(How::SecondLarge) => AdamW { step: step.step + 1, ..step },
            _ => step,
        };
        self.inner.adamw(step, p, g, m, v)
    }
    fn load(&self, from: Stored<'_>, out: MatMut<'_, Buf>, told: &mut dyn FnMut(usize)) -> Result<(), Error> {
        self.spoiled("load", out, |out| match self.inner.load(from, out, told) {
            Err(Error::ValueNotFinite { .. }) if self.wrong("load") == Some(How::Takes) => Ok(()),
            loaded => loaded,
        })
    }
    fn fill_random(&self, key: FillKey, std: f32, out: MatMut<'_, Buf>) -> Result<(), Error> {
        let tensor = key.tensor + u32::from(self.wrong("fill_random") == Some(How::Mask));
        self.spoiled("fill_random", out, |out| self.inner.fill_random(FillKey { tensor, ..key }, std, out))
    }

    type Mark = K::Mark;

    fn mark(&self) -> Result<K::Mark, Error> {
        self.inner.mark()
    }
    fn between(&self, start: &K::Mark, end: &K::Mark) -> Result<Duration, Error> {
        self.inner.between(start, end)
    }
    fn storage(&self) -> Storage {
        self.inner.storage()
    }
    fn memory(&self) -> Result<Option<DeviceMemory>, Error> {
        self.inner.memory()
    }
    fn name(&self) -> String {
        self.inner.name()
    }

    type Later = K::Later;
    type Guard = K::Guard;
    type Copies = K::Copies;
    fn ahead(&self) -> usize {
        self.inner.ahead()
    }
    fn read_later(&self, buf: &Buf, range: Range<usize>) -> Result<K::Later, Error> {
        let by = usize::from(self.wrong("read_later") == Some(How::Rows));
        self.inner.read_later(buf, range.start + by..range.end + by)
    }
    fn wait(&self, later: K::Later) -> Result<Vec<f64>, Error> {
        self.inner.wait(later)
    }
    fn guard(&self) -> Result<K::Guard, Error> {
        self.inner.guard()
    }
    fn clear_guard(&self, guard: &mut K::Guard) -> Result<(), Error> {
        self.inner.clear_guard(guard)
    }
    fn watch(&self, losses: &Buf, n: usize, guard: &mut K::Guard) -> Result<(), Error> {
        if self.wrong("watch") == Some(How::Forgets) {
            return Ok(());
        }
        self.inner.watch(losses, n, guard)
    }
    fn copies(&self, n: usize, to: &[&Buf], segments: &[Segment]) -> Result<K::Copies, Error> {
        self.inner.copies(n, to, segments)
    }
    fn clip_and_update(
        &self,
        step: AdamW,
        max_norm: Option<f64>,
        guard: &mut K::Guard,
        flat: Flat<'_, Buf>,
        refresh: Refresh<'_, '_, Self>,
    ) -> Result<K::Later, Error> {
        let Refresh { copies, to } = refresh;
        let wrong = self.wrong("clip_and_update");
        let step = match wrong {
            Some(How::Large) => AdamW { lr: step.lr * 1.01, ..step },
            Some(How::Position) => AdamW { step: step.step + 1, ..step },
            _ => step,
        };
        let max_norm = if wrong == Some(How::Forgets) { None } else { max_norm };
        if wrong == Some(How::Swallows) {
            self.inner.clear_guard(guard)?;
        }
        let refresh = Refresh { copies, to: &mut *to };
        let later = self.inner.clip_and_update(step, max_norm, guard, flat, refresh)?;
        if wrong == Some(How::SecondLarge) {
            scale(to[0]);
        }
        Ok(later)
    }
}
