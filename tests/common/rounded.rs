//! The CPU's kernels with what the device stores rounded to bf16: what a device should give but for the order of its sums
//! and the roundings inside an operation.

use std::ops::Range;
use std::time::{Duration, Instant};

use tunesmith_emulator::check;
use tunesmith_ops::{
    AdamW, Attention, AttentionGradients, DeviceMemory, DropoutKey, Error, FillKey, Flat, Index, Kernels,
    Mat, MatMut, RefKernels, Refresh, RopeTable, RowNames, Segment, Storage, Stored,
};

type Buf = Vec<f32>;

/// [`RefKernels`] that rounds every stored matrix to bf16.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rounded;

/// Another view of the same matrix, for use after the first is gone.
fn again<'a>(m: &'a mut MatMut<'_, Buf>) -> MatMut<'a, Buf> {
    MatMut { buf: &mut *m.buf, at: m.at, rows: m.rows, cols: m.cols, ld: m.ld }
}

fn round(m: MatMut<'_, Buf>) {
    for row in 0..m.rows {
        let at = m.at + row * m.ld;
        m.buf[at..at + m.cols].iter_mut().for_each(|v| *v = check::round_bf16(*v));
    }
}

/// Runs an operation of the CPU on a matrix, and rounds what it wrote.
fn rounded(
    mut out: MatMut<'_, Buf>,
    op: impl FnOnce(MatMut<'_, Buf>) -> Result<(), Error>,
) -> Result<(), Error> {
    op(again(&mut out))?;
    round(out);
    Ok(())
}

impl Kernels for Rounded {
    type Buf = Buf;
    type Full = Buf;

    fn zeros(&self, len: usize) -> Result<Buf, Error> {
        RefKernels.zeros(len)
    }
    fn zeros_full(&self, len: usize) -> Result<Buf, Error> {
        RefKernels.zeros_full(len)
    }
    fn write(&self, values: &[f32], out: MatMut<'_, Buf>) -> Result<(), Error> {
        rounded(out, |out| RefKernels.write(values, out))
    }
    fn read(&self, m: Mat<'_, Buf>) -> Result<Vec<f32>, Error> {
        RefKernels.read(m)
    }
    fn write_full(&self, values: &[f32], out: &mut Buf, at: usize) -> Result<(), Error> {
        RefKernels.write_full(values, out, at)
    }
    fn read_full(&self, buf: &Buf) -> Result<Vec<f32>, Error> {
        RefKernels.read_full(buf)
    }
    fn clear_full(&self, out: &mut Buf) -> Result<(), Error> {
        RefKernels.clear_full(out)
    }
    fn gemm(
        &self,
        alpha: f32,
        a: Mat<'_, Buf>,
        b: Mat<'_, Buf>,
        beta: f32,
        c: MatMut<'_, Buf>,
    ) -> Result<(), Error> {
        rounded(c, |c| RefKernels.gemm(alpha, a, b, beta, c))
    }
    fn gemm_onto(
        &self,
        a: Mat<'_, Buf>,
        b: Mat<'_, Buf>,
        onto: Mat<'_, Buf>,
        out: MatMut<'_, Buf>,
    ) -> Result<(), Error> {
        rounded(out, |out| RefKernels.gemm_onto(a, b, onto, out))
    }
    fn gemm_full(
        &self,
        alpha: f32,
        a: Mat<'_, Buf>,
        b: Mat<'_, Buf>,
        beta: f32,
        c: MatMut<'_, Buf>,
    ) -> Result<(), Error> {
        RefKernels.gemm_full(alpha, a, b, beta, c)
    }
    fn cast(&self, alpha: f32, m: Mat<'_, Buf>, out: MatMut<'_, Buf>) -> Result<(), Error> {
        rounded(out, |out| RefKernels.cast(alpha, m, out))
    }
    fn clear(&self, out: MatMut<'_, Buf>) -> Result<(), Error> {
        RefKernels.clear(out)
    }
    fn copy(&self, m: Mat<'_, Buf>, out: MatMut<'_, Buf>) -> Result<(), Error> {
        RefKernels.copy(m, out)
    }
    fn add(&self, m: Mat<'_, Buf>, out: MatMut<'_, Buf>) -> Result<(), Error> {
        rounded(out, |out| RefKernels.add(m, out))
    }
    fn gather_rows(&self, m: Mat<'_, Buf>, rows: &Index, out: MatMut<'_, Buf>) -> Result<(), Error> {
        RefKernels.gather_rows(m, rows, out)
    }
    fn scatter_rows(&self, m: Mat<'_, Buf>, rows: &Index, out: MatMut<'_, Buf>) -> Result<(), Error> {
        RefKernels.scatter_rows(m, rows, out)
    }
    fn dropout(
        &self,
        m: Mat<'_, Buf>,
        key: DropoutKey,
        p: f32,
        rows: &RowNames,
        out: MatMut<'_, Buf>,
    ) -> Result<(), Error> {
        rounded(out, |out| RefKernels.dropout(m, key, p, rows, out))
    }
    fn embed(&self, table: Mat<'_, Buf>, ids: &[u32], out: MatMut<'_, Buf>) -> Result<(), Error> {
        RefKernels.embed(table, ids, out)
    }
    fn rms_norm(
        &self,
        x: Mat<'_, Buf>,
        w: &Buf,
        eps: f32,
        y: MatMut<'_, Buf>,
        rstd: &mut Buf,
    ) -> Result<(), Error> {
        rounded(y, |y| RefKernels.rms_norm(x, w, eps, y, rstd))
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
        let Some(y) = y else {
            return rounded(dx, |dx| RefKernels.rms_norm_backward(dy, x, w, rstd, dx, None));
        };
        rounded(dx, |dx| rounded(y, |y| RefKernels.rms_norm_backward(dy, x, w, rstd, dx, Some(y))))
    }
    fn rope(
        &self,
        x: MatMut<'_, Buf>,
        positions: &Index,
        table: &RopeTable,
        inverse: bool,
    ) -> Result<(), Error> {
        rounded(x, |x| RefKernels.rope(x, positions, table, inverse))
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
        rounded(o, |o| RefKernels.attention(how, q, k, v, o, lse))
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
        let run =
            |out: AttentionGradients<'_, Buf>| RefKernels.attention_backward(how, q, k, v, o, lse, d_o, out);
        match out {
            AttentionGradients::Apart { d_q, d_kv } => {
                rounded(d_q, |d_q| rounded(d_kv, |d_kv| run(AttentionGradients::Apart { d_q, d_kv })))
            }
            AttentionGradients::Fused(all) => rounded(all, |all| run(AttentionGradients::Fused(all))),
        }
    }
    fn swiglu(&self, gate_up: Mat<'_, Buf>, h: MatMut<'_, Buf>) -> Result<(), Error> {
        rounded(h, |h| RefKernels.swiglu(gate_up, h))
    }
    fn swiglu_backward(
        &self,
        dh: Mat<'_, Buf>,
        gate_up: MatMut<'_, Buf>,
        h: MatMut<'_, Buf>,
    ) -> Result<(), Error> {
        rounded(gate_up, |gate_up| rounded(h, |h| RefKernels.swiglu_backward(dh, gate_up, h)))
    }
    fn linear_cross_entropy(
        &self,
        x: MatMut<'_, Buf>,
        head: Mat<'_, Buf>,
        targets: &[u32],
        weight: Option<f32>,
        losses: &mut Buf,
    ) -> Result<(), Error> {
        rounded(x, |mut x| {
            let (n, vocab) = (x.rows, head.rows);
            if targets.iter().any(|&target| target as usize >= vocab) {
                // Which is refused.
                return RefKernels.linear_cross_entropy(x, head, targets, weight, losses);
            }
            let mut logits = vec![0.0; n * vocab];
            let hidden = Mat { buf: &*x.buf, at: x.at, rows: n, cols: x.cols, ld: x.ld, transposed: false };
            self.gemm(1.0, hidden, head.t(), 0.0, MatMut::new(&mut logits, n, vocab, vocab))?;
            for (i, row) in logits.chunks_exact_mut(vocab).enumerate() {
                let target = targets[i] as usize;
                losses[i] = tunesmith_kernels::cpu::cross_entropy_row(row, target, weight.unwrap_or(0.0));
            }
            round(MatMut::new(&mut logits, n, vocab, vocab));
            match weight {
                Some(_) => RefKernels.gemm(1.0, Mat::new(&logits, n, vocab, vocab), head, 0.0, again(&mut x)),
                None => Ok(()),
            }
        })
    }
    fn norm(&self, x: &Buf) -> Result<f64, Error> {
        RefKernels.norm(x)
    }
    fn adamw(&self, step: AdamW, p: &mut Buf, g: &Buf, m: &mut Buf, v: &mut Buf) -> Result<(), Error> {
        RefKernels.adamw(step, p, g, m, v)
    }

    // --- loading, random weights, timing ---

    fn load(&self, from: Stored<'_>, out: MatMut<'_, Buf>, told: &mut dyn FnMut(usize)) -> Result<(), Error> {
        rounded(out, |out| RefKernels.load(from, out, told))
    }
    fn fill_random(&self, key: FillKey, std: f32, out: MatMut<'_, Buf>) -> Result<(), Error> {
        rounded(out, |out| RefKernels.fill_random(key, std, out))
    }

    type Mark = Instant;

    fn mark(&self) -> Result<Instant, Error> {
        RefKernels.mark()
    }
    fn between(&self, start: &Instant, end: &Instant) -> Result<Duration, Error> {
        RefKernels.between(start, end)
    }
    fn name(&self) -> String {
        RefKernels.name()
    }

    // Memory.
    fn storage(&self) -> Storage {
        RefKernels.storage()
    }
    fn memory(&self) -> Result<Option<DeviceMemory>, Error> {
        RefKernels.memory()
    }

    // A training step that never waits for the device: here everything is ready at once.

    type Later = Vec<f64>;
    type Guard = bool;
    type Copies = Vec<Segment>;
    fn ahead(&self) -> usize {
        RefKernels.ahead()
    }
    fn read_later(&self, buf: &Buf, range: Range<usize>) -> Result<Vec<f64>, Error> {
        RefKernels.read_later(buf, range)
    }
    fn wait(&self, later: Vec<f64>) -> Result<Vec<f64>, Error> {
        RefKernels.wait(later)
    }
    fn guard(&self) -> Result<bool, Error> {
        RefKernels.guard()
    }
    fn clear_guard(&self, guard: &mut bool) -> Result<(), Error> {
        RefKernels.clear_guard(guard)
    }
    fn watch(&self, losses: &Buf, n: usize, guard: &mut bool) -> Result<(), Error> {
        RefKernels.watch(losses, n, guard)
    }
    fn copies(&self, n: usize, to: &[&Buf], segments: &[Segment]) -> Result<Vec<Segment>, Error> {
        RefKernels.copies(n, to, segments)
    }
    fn clip_and_update(
        &self,
        step: AdamW,
        max_norm: Option<f64>,
        guard: &mut bool,
        flat: Flat<'_, Buf>,
        refresh: Refresh<'_, '_, Self>,
    ) -> Result<Vec<f64>, Error> {
        let Refresh { copies, to } = refresh;
        let out =
            RefKernels.clip_and_update(step, max_norm, guard, flat, Refresh { copies, to: &mut *to })?;
        for s in copies {
            round(MatMut { buf: &mut *to[s.to], at: s.at, rows: s.rows, cols: s.cols, ld: s.ld });
        }
        Ok(out)
    }
}
