//! Whole passes: losses, gradients and logits of a batch.

use tunesmith_ops::{Kernels, Mat, MatMut, RowNames, Sequences};

use super::block::Cx;
use super::group::Dropout;
use super::{Batch, Decoder, DropoutStep, Workspace};
use crate::error::{Error, Result};

impl<K: Kernels> Decoder<K> {
    /// Cross-entropy of every selected row, `[selected]`, and its gradient by every LoRA parameter: `weight` times
    /// the gradient of the sum is added to `gradients`, the flat buffer of [`Decoder::layout`].
    ///
    /// The loss of an optimizer step is the sum over its micro-batches divided by the trained tokens of the whole
    /// step; passing `weight = 1 / trained tokens` for each micro-batch gives its gradient, however it is cut.
    ///
    /// # Errors
    /// A token id outside the vocabulary, a batch larger than the workspace, or a device fault.
    pub fn loss_and_gradients(
        &self,
        workspace: &mut Workspace<K>,
        batch: &Batch,
        weight: f32,
        dropout: Option<DropoutStep>,
        gradients: &mut K::Full,
    ) -> Result<Vec<f32>> {
        let later = self.queue_loss_and_gradients(workspace, batch, weight, dropout, gradients, None)?;
        self.wait_for_losses(later)
    }

    /// As [`Decoder::loss_and_gradients`], but returns before the device is done: the losses come from
    /// [`Kernels::wait`], and trip the guard where one is not finite.
    ///
    /// # Errors
    /// As [`Decoder::loss_and_gradients`]; a fault of the device may also show when it is waited for.
    pub fn queue_loss_and_gradients(
        &self,
        workspace: &mut Workspace<K>,
        batch: &Batch,
        weight: f32,
        dropout: Option<DropoutStep>,
        gradients: &mut K::Full,
        guard: Option<&mut K::Guard>,
    ) -> Result<K::Later> {
        if !workspace.training {
            return Err(Error::internal("gradients need a training workspace"));
        }
        let dropout = dropout.filter(|d| d.p > 0.0);
        let losses = self.forward_loss(workspace, batch, Some(weight), dropout)?;
        if let Some(guard) = guard {
            self.kernels.watch(&workspace.losses, batch.rows.len(), guard)?;
        }
        self.backward(workspace, batch, dropout, gradients)?;
        Ok(losses)
    }

    /// Cross-entropy of every selected row, `[selected]`.
    ///
    /// # Errors
    /// As [`Decoder::loss_and_gradients`].
    pub fn losses(&self, workspace: &mut Workspace<K>, batch: &Batch) -> Result<Vec<f32>> {
        let later = self.queue_losses(workspace, batch)?;
        self.wait_for_losses(later)
    }

    /// As [`Decoder::losses`], but returns before the device is done: the losses come from [`Kernels::wait`].
    ///
    /// # Errors
    /// As [`Decoder::queue_loss_and_gradients`].
    pub fn queue_losses(&self, workspace: &mut Workspace<K>, batch: &Batch) -> Result<K::Later> {
        self.forward_loss(workspace, batch, None, None)
    }

    fn wait_for_losses(&self, later: K::Later) -> Result<Vec<f32>> {
        // They were f32.
        Ok(self.kernels.wait(later)?.into_iter().map(|loss| loss as f32).collect())
    }

    /// Logits of the selected rows, `[selected, vocab_size]`: for tests and small batches, as nothing else ever
    /// holds all of them.
    ///
    /// # Errors
    /// As [`Decoder::loss_and_gradients`].
    pub fn logits(&self, workspace: &mut Workspace<K>, batch: &Batch) -> Result<Vec<f32>> {
        self.forward(workspace, batch, None)?;
        let (n, d, vocab) = (batch.rows.len(), self.config.hidden_size, self.config.vocab_size);
        let mut out = self.kernels.zeros(n * vocab)?;
        let hidden = Mat::new(&workspace.normed, n, d, d);
        self.kernels.gemm(1.0, hidden, self.head().t(), 0.0, MatMut::new(&mut out, n, vocab, vocab))?;
        Ok(self.kernels.read(Mat::new(&out, n, vocab, vocab))?)
    }

    /// The output head, `[vocab_size, d]`.
    pub(super) fn head(&self) -> Mat<'_, K::Buf> {
        let (vocab, d) = (self.config.vocab_size, self.config.hidden_size);
        Mat::new(self.head.as_ref().unwrap_or(&self.embedding), vocab, d, d)
    }

    fn cx<'a>(
        &'a self,
        batch: &'a Batch,
        dropout: Option<DropoutStep>,
        selected: Option<&'a Sequences>,
    ) -> Cx<'a, K> {
        let named =
            |rows: &'a RowNames| dropout.map(|d| Dropout { p: d.p, seed: d.seed, step: d.step, rows });
        let all = named(&batch.row_keys);
        let some = if dropout.is_some() && selected.is_some() { named(batch.selected_keys()) } else { all };
        Cx {
            k: &self.kernels,
            config: &self.config,
            widths: self.widths(),
            table: &self.table,
            positions: &batch.positions,
            sequences: selected.unwrap_or(&batch.sequences),
            selected: selected.map(|_| &batch.rows),
            dropout: all,
            dropout_selected: some,
        }
    }

    /// Fills the tapes, `hidden` and `normed`.
    fn forward(&self, ws: &mut Workspace<K>, batch: &Batch, dropout: Option<DropoutStep>) -> Result<()> {
        let (n, d) = (batch.tokens(), self.config.hidden_size);
        if n > ws.capacity {
            return Err(Error::internal(format!("{n} tokens in a workspace for {}", ws.capacity)));
        }
        let k = &self.kernels;
        let table = Mat::new(&self.embedding, self.config.vocab_size, d, d);
        k.embed(table, &batch.ids, MatMut::new(&mut ws.tapes[0].input, n, d, d))?;
        let last_sequences = batch.last_queries()?;
        let last = self.blocks.len() - 1;
        for (layer, block) in self.blocks.iter().enumerate() {
            let cx = self.cx(batch, dropout, if layer == last { last_sequences } else { None });
            // Without gradients one tape serves every block in turn.
            let at = if ws.training { layer } else { 0 };
            let (head, tail) = ws.tapes.split_at_mut(at + 1);
            let tape = &mut head[at];
            let scratch = &mut ws.scratch;
            let (mut own_attention, mut own_middle, mut own_mlp) =
                (scratch.attention.take(), scratch.middle.take(), scratch.mlp.take());
            let missing = || Error::internal("a buffer of the workspace is missing");
            let attention = tape.attention.as_mut().or(own_attention.as_mut()).ok_or_else(missing)?;
            let middle = tape.middle.as_mut().or(own_middle.as_mut()).ok_or_else(missing)?;
            let mlp = tape.mlp.as_mut().or(own_mlp.as_mut()).ok_or_else(missing)?;
            block.forward_attention(&cx, &tape.input, attention, Some(middle), scratch)?;
            let y = match tail.first_mut() {
                Some(next) if layer < last => &mut next.input,
                _ => &mut ws.hidden,
            };
            block.forward_mlp(&cx, middle, mlp, Some(y), scratch)?;
            if !ws.training && layer < last {
                std::mem::swap(&mut tape.input, &mut ws.hidden);
            }
            (scratch.attention, scratch.middle, scratch.mlp) = (own_attention, own_middle, own_mlp);
        }
        let m = batch.rows.len();
        let (x, y) = (Mat::new(&ws.hidden, m, d, d), MatMut::new(&mut ws.normed, m, d, d));
        Ok(k.rms_norm(x, &self.norm, self.config.rms_norm_eps as f32, y, &mut ws.rstd)?)
    }

    fn forward_loss(
        &self,
        ws: &mut Workspace<K>,
        batch: &Batch,
        weight: Option<f32>,
        dropout: Option<DropoutStep>,
    ) -> Result<K::Later> {
        let (m, d) = (batch.rows.len(), self.config.hidden_size);
        if m > 0 {
            self.forward(ws, batch, dropout)?;
            let x = MatMut::new(&mut ws.normed, m, d, d);
            self.kernels.linear_cross_entropy(x, self.head(), &batch.targets, weight, &mut ws.losses)?;
        }
        Ok(self.kernels.read_later(&ws.losses, 0..m)?)
    }

    /// The lowest block with an update: below it nothing needs a gradient.
    fn first_trained(&self) -> Option<usize> {
        self.blocks.iter().position(|b| b.groups().iter().any(|g| !g.slots.is_empty()))
    }

    fn backward(
        &self,
        ws: &mut Workspace<K>,
        batch: &Batch,
        dropout: Option<DropoutStep>,
        gradients: &mut K::Full,
    ) -> Result<()> {
        let Some(first) = self.first_trained().filter(|_| !batch.rows.is_empty()) else { return Ok(()) };
        let (k, m, w) = (&self.kernels, batch.rows.len(), self.widths());
        // `normed` now holds the gradient of the final norm's output.
        k.clear(MatMut::new(&mut ws.dx, m, w.d, w.dx))?;
        let (dy, x) = (Mat::new(&ws.normed, m, w.d, w.d), Mat::new(&ws.hidden, m, w.d, w.d));
        k.rms_norm_backward(dy, x, &self.norm, &ws.rstd, MatMut::new(&mut ws.dx, m, w.d, w.dx), None)?;
        let last_sequences = batch.last_queries()?;
        let last = self.blocks.len() - 1;
        for (layer, block) in self.blocks.iter().enumerate().skip(first).rev() {
            let cx = self.cx(batch, dropout, if layer == last { last_sequences } else { None });
            let (tape, scratch) = (&mut ws.tapes[layer], &mut ws.scratch);
            let (mut own_attention, mut own_middle, mut own_mlp) =
                (scratch.attention.take(), scratch.middle.take(), scratch.mlp.take());
            let missing = || Error::internal("a buffer of the workspace is missing");
            let (redo_attention, redo_middle) = (tape.attention.is_none(), tape.middle.is_none());
            let redo_mlp = tape.mlp.is_none();
            let attention = tape.attention.as_mut().or(own_attention.as_mut()).ok_or_else(missing)?;
            let middle = tape.middle.as_mut().or(own_middle.as_mut()).ok_or_else(missing)?;
            let mlp = tape.mlp.as_mut().or(own_mlp.as_mut()).ok_or_else(missing)?;
            if redo_attention {
                let middle = redo_middle.then_some(&mut *middle);
                block.forward_attention(&cx, &tape.input, attention, middle, scratch)?;
            }
            if redo_mlp {
                block.forward_mlp(&cx, middle, mlp, None, scratch)?;
            }
            block.backward_mlp(&cx, middle, mlp, &mut ws.dx, scratch, gradients)?;
            let need_dx = layer > first;
            let (dx, dx_rows) = (&mut ws.dx, &mut ws.dx_rows);
            block.backward_attention(
                &cx,
                &tape.input,
                attention,
                dx,
                dx_rows,
                need_dx,
                scratch,
                gradients,
            )?;
            (scratch.attention, scratch.middle, scratch.mlp) = (own_attention, own_middle, own_mlp);
        }
        Ok(())
    }
}
