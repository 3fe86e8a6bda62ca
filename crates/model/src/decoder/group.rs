//! A fused frozen weight with its LoRA updates: one augmented matrix, plain matrix products.
//!
//! ```text
//!         K      rp
//!     ┌───────┬──────┐
//!   N │   W   │ s·B  │   forward:  S = X Aᵀ,  [X S] [W sB]ᵀ = X Wᵀ + s (X Aᵀ) Bᵀ
//!     ├───────┼──────┤   backward: dS = dY sB, [dY dS] [W; A] = dY W + dS A
//!  rp │   A   │      │             dB += s dYᵀ S,  dA += dSᵀ X
//!     └───────┴──────┘
//! ```
//!
//! B is block diagonal over the linears of the group. rp is the sum of the ranks, padded with zeros. With dropout
//! the down-projection reads dropped inputs, one mask per linear as in PEFT, and the A part of dX is masked.

use tunesmith_ops::{DropoutKey, Kernels, Mat, MatMut, RowNames, Segment};

use crate::adapter::Slot;
use crate::error::Result;

/// Dropout of one forward and backward: absent in evaluation and inference.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dropout<'a> {
    /// Probability of dropping an input.
    pub(super) p: f32,
    /// Seed of the run.
    pub(super) seed: u64,
    /// Optimizer step.
    pub(super) step: u32,
    /// `[rows]`: names of the rows.
    pub(super) rows: &'a RowNames,
}

impl Dropout<'_> {
    fn key(&self, slot: &Slot) -> DropoutKey {
        DropoutKey { seed: self.seed, step: self.step, site: slot.number() }
    }
}

/// Scratch that all groups share, sized for the largest.
#[derive(Debug)]
pub(super) struct GroupScratch<K: Kernels> {
    /// `[rows, rp]`: dS.
    pub(super) ds: K::Buf,
    /// `[rows, K]`: a dropped input or its gradient; empty without dropout.
    pub(super) dropped: K::Buf,
    /// `[rows, K]`: one update's part of dX before its mask; empty without dropout.
    pub(super) part: K::Buf,
}

/// The weights of one group of one block.
#[derive(Debug)]
pub(super) struct LoraGroup<K: Kernels> {
    weights: K::Buf,
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    /// Padded sum of the ranks; 0 without updates.
    pub(super) ranks: usize,
    pub(super) slots: Vec<Slot>,
}

impl<K: Kernels> LoraGroup<K> {
    pub(super) fn new(k: &K, outputs: usize, inputs: usize, slots: Vec<Slot>) -> Result<Self> {
        let ranks = slots.iter().map(|s| s.site.rank).sum::<usize>().next_multiple_of(k.rank_padding());
        let weights = k.zeros((outputs + ranks) * (inputs + ranks))?;
        Ok(Self { weights, outputs, inputs, ranks, slots })
    }

    /// Distance between the rows of an input buffer of this group: inputs and S side by side.
    pub(super) fn input_ld(&self) -> usize {
        self.inputs + self.ranks
    }

    /// Distance between the rows of an output-gradient buffer of this group: dY and dS side by side.
    pub(super) fn output_ld(&self) -> usize {
        self.outputs + self.ranks
    }

    fn all(&self) -> Mat<'_, K::Buf> {
        Mat::new(&self.weights, self.outputs + self.ranks, self.input_ld(), self.input_ld())
    }

    /// Where the frozen weight of `out` rows from `row` belongs, `[out, in]`.
    pub(super) fn weight_mut(&mut self, row: usize, out: usize) -> MatMut<'_, K::Buf> {
        let (ld, inputs) = (self.input_ld(), self.inputs);
        MatMut::new(&mut self.weights, self.outputs + self.ranks, ld, ld)
            .rows(row..row + out)
            .columns(0..inputs)
    }

    /// The frozen weight of `out` rows from `row`, `[out, in]`.
    pub(super) fn read_weight(&self, k: &K, row: usize, out: usize) -> Result<Vec<f32>> {
        Ok(k.read(self.all().rows(row..row + out).columns(0..self.inputs))?)
    }

    /// Brings A and s·B of the flat parameters into the augmented matrix.
    pub(super) fn refresh(&mut self, k: &K, parameters: &K::Full) -> Result<()> {
        let segments: Vec<Segment> = self.segments(0).collect();
        for segment in &segments {
            k.copy_segment(parameters, segment, &mut self.weights)?;
        }
        Ok(())
    }

    /// The augmented matrix: A and s·B lie in it as [`Self::segments`] says.
    pub(super) fn weights(&self) -> &K::Buf {
        &self.weights
    }

    /// [`Self::weights`], to write.
    pub(super) fn weights_mut(&mut self) -> &mut K::Buf {
        &mut self.weights
    }

    /// Where the copies of A and s·B lie that [`Self::refresh`] makes, in the buffer of number `to`.
    pub(super) fn segments(&self, to: usize) -> impl Iterator<Item = Segment> {
        let (ld, inputs, outputs) = (self.input_ld(), self.inputs, self.outputs);
        self.slots.iter().flat_map(move |slot| {
            let (rank, at) = (slot.site.rank, slot.rank_offset);
            let segment = |start, rows, cols, at, factor| Segment { start, rows, cols, to, at, ld, factor };
            [
                segment(slot.a.start, rank, inputs, (outputs + at) * ld, 1.0),
                segment(slot.b.start, slot.out, rank, slot.row * ld + inputs + at, slot.site.scale),
            ]
        })
    }

    /// W += s B A, and A = B = 0: the adapter becomes part of the frozen weight.
    pub(super) fn merge(&mut self, k: &K) -> Result<()> {
        if self.ranks == 0 {
            return Ok(());
        }
        let (n, ld, rp) = (self.outputs, self.input_ld(), self.ranks);
        let (mut b, mut a) = (k.zeros(n * rp)?, k.zeros(rp * self.inputs)?);
        k.copy(self.all().rows(0..n).columns(self.inputs..ld), MatMut::new(&mut b, n, rp, rp))?;
        k.copy(
            self.all().rows(n..n + rp).columns(0..self.inputs),
            MatMut::new(&mut a, rp, self.inputs, self.inputs),
        )?;
        let (b, a) = (Mat::new(&b, n, rp, rp), Mat::new(&a, rp, self.inputs, self.inputs));
        let w = MatMut::new(&mut self.weights, n, self.inputs, ld);
        k.gemm(1.0, b, a, 1.0, w)?;
        let zeros = k.zeros(n.max(rp) * ld)?;
        let all = MatMut::new(&mut self.weights, n + rp, ld, ld);
        k.copy(Mat::new(&zeros, rp, ld, ld), all.rows(n..n + rp))?;
        let all = MatMut::new(&mut self.weights, n, ld, ld);
        Ok(k.copy(Mat::new(&zeros, n, rp, ld), all.columns(self.inputs..ld))?)
    }

    /// S = X Aᵀ into `s` `[rows, rp]` and into the tail of `x`, whose rows are [`Self::input_ld`] apart.
    pub(super) fn down(
        &self,
        k: &K,
        x: &mut K::Buf,
        rows: usize,
        s: &mut K::Buf,
        dropout: Option<Dropout<'_>>,
        scratch: &mut GroupScratch<K>,
    ) -> Result<()> {
        if self.ranks == 0 {
            return Ok(());
        }
        self.down_only(k, x, rows, s, dropout, scratch)?;
        let tail =
            MatMut::new(x, rows, self.input_ld(), self.input_ld()).columns(self.inputs..self.input_ld());
        Ok(k.copy(Mat::new(s, rows, self.ranks, self.ranks), tail)?)
    }

    fn down_only(
        &self,
        k: &K,
        x: &K::Buf,
        rows: usize,
        s: &mut K::Buf,
        dropout: Option<Dropout<'_>>,
        scratch: &mut GroupScratch<K>,
    ) -> Result<()> {
        let a = self.all().rows(self.outputs..self.outputs + self.ranks).columns(0..self.inputs);
        let x = Mat::new(x, rows, self.inputs, self.input_ld());
        let Some(dropout) = dropout else {
            return Ok(k.gemm(1.0, x, a.t(), 0.0, MatMut::new(s, rows, self.ranks, self.ranks))?);
        };
        for slot in &self.slots {
            let out = MatMut::new(&mut scratch.dropped, rows, self.inputs, self.inputs);
            k.dropout(x, dropout.key(slot), dropout.p, dropout.rows, out)?;
            let span = self.rank_span(slot);
            let dropped = Mat::new(&scratch.dropped, rows, self.inputs, self.inputs);
            let out = MatMut::new(s, rows, self.ranks, self.ranks).columns(span.clone());
            k.gemm(1.0, dropped, a.rows(span).t(), 0.0, out)?;
        }
        Ok(())
    }

    /// The rank columns that this slot writes: its own, and the padding after the last slot.
    fn rank_span(&self, slot: &Slot) -> std::ops::Range<usize> {
        let end = slot.rank_offset + slot.site.rank;
        let last = self.slots.last().is_some_and(|l| l.rank_offset == slot.rank_offset);
        slot.rank_offset..if last { self.ranks } else { end }
    }

    /// out = [X S] [W sB]ᵀ + beta · out.
    pub(super) fn forward(&self, k: &K, x: &K::Buf, beta: f32, out: MatMut<'_, K::Buf>) -> Result<()> {
        let x = Mat::new(x, out.rows, self.input_ld(), self.input_ld());
        Ok(k.gemm(1.0, x, self.all().rows(0..self.outputs).t(), beta, out)?)
    }

    /// out = [X S] [W sB]ᵀ + onto.
    pub(super) fn forward_onto(
        &self,
        k: &K,
        x: &K::Buf,
        onto: Mat<'_, K::Buf>,
        out: MatMut<'_, K::Buf>,
    ) -> Result<()> {
        let x = Mat::new(x, out.rows, self.input_ld(), self.input_ld());
        Ok(k.gemm_onto(x, self.all().rows(0..self.outputs).t(), onto, out)?)
    }

    /// dS = dY sB into the scratch and into the tail of `dy`; then, if asked for, dX = [dY dS] [W; A].
    ///
    /// `dy` has rows `dy_ld` apart with room for dS right after its outputs.
    pub(super) fn backward_input(
        &self,
        k: &K,
        dy: &mut K::Buf,
        dy_ld: usize,
        rows: usize,
        dx: Option<MatMut<'_, K::Buf>>,
        dropout: Option<Dropout<'_>>,
        scratch: &mut GroupScratch<K>,
    ) -> Result<()> {
        let (n, rp) = (self.outputs, self.ranks);
        for slot in &self.slots {
            let span = self.rank_span(slot);
            let dy = Mat::new(&*dy, rows, n, dy_ld).columns(slot.row..slot.row + slot.out);
            let b = self.all().rows(slot.row..slot.row + slot.out);
            let b = b.columns(self.inputs + span.start..self.inputs + span.end);
            k.gemm(1.0, dy, b, 0.0, MatMut::new(&mut scratch.ds, rows, rp, rp).columns(span))?;
        }
        let Some(dx) = dx else { return Ok(()) };
        let fused = rp > 0 && dropout.is_none();
        if fused {
            let tail = MatMut::new(dy, rows, n + rp, dy_ld).columns(n..n + rp);
            k.copy(Mat::new(&scratch.ds, rows, rp, rp), tail)?;
        }
        let depth = if fused { n + rp } else { n };
        let w = self.all().rows(0..depth).columns(0..self.inputs);
        let MatMut { buf, at, ld, .. } = dx;
        let out = MatMut { buf: &mut *buf, at, rows, cols: self.inputs, ld };
        k.gemm(1.0, Mat::new(&*dy, rows, depth, dy_ld), w, 0.0, out)?;
        let Some(dropout) = dropout else { return Ok(()) };
        for slot in &self.slots {
            let span = slot.rank_offset..slot.rank_offset + slot.site.rank;
            let ds = Mat::new(&scratch.ds, rows, rp, rp).columns(span.clone());
            let a = self.all().rows(n + span.start..n + span.end).columns(0..self.inputs);
            k.gemm(1.0, ds, a, 0.0, MatMut::new(&mut scratch.part, rows, self.inputs, self.inputs))?;
            let part = Mat::new(&scratch.part, rows, self.inputs, self.inputs);
            let out = MatMut::new(&mut scratch.dropped, rows, self.inputs, self.inputs);
            k.dropout(part, dropout.key(slot), dropout.p, dropout.rows, out)?;
            let out = MatMut { buf: &mut *buf, at, rows, cols: self.inputs, ld };
            k.add(Mat::new(&scratch.dropped, rows, self.inputs, self.inputs), out)?;
        }
        Ok(())
    }

    /// dB += s dYᵀ S and dA += dSᵀ X, from the dS that [`Self::backward_input`] left in the scratch.
    pub(super) fn backward_parameters(
        &self,
        k: &K,
        (dy, dy_ld): (&K::Buf, usize),
        x: Mat<'_, K::Buf>,
        s: Mat<'_, K::Buf>,
        gradients: &mut K::Full,
        dropout: Option<Dropout<'_>>,
        scratch: &mut GroupScratch<K>,
    ) -> Result<()> {
        let (rows, rp) = (x.rows, self.ranks);
        for slot in &self.slots {
            let r = slot.site.rank;
            let span = slot.rank_offset..slot.rank_offset + r;
            let dy = Mat::new(dy, rows, self.outputs, dy_ld).columns(slot.row..slot.row + slot.out);
            let db = MatMut { at: slot.b.start, ..MatMut::new(gradients, slot.out, r, r) };
            k.gemm_full(slot.site.scale, dy.t(), s.columns(span), 1.0, db)?;
        }
        let (Some(first), Some(last)) = (self.slots.first(), self.slots.last()) else { return Ok(()) };
        let Some(dropout) = dropout else {
            let ranks = last.rank_offset + last.site.rank;
            let ds = Mat::new(&scratch.ds, rows, rp, rp).columns(0..ranks);
            let da = MatMut { at: first.a.start, ..MatMut::new(gradients, ranks, self.inputs, self.inputs) };
            return Ok(k.gemm_full(1.0, ds.t(), x, 1.0, da)?);
        };
        for slot in &self.slots {
            let r = slot.site.rank;
            let out = MatMut::new(&mut scratch.dropped, rows, self.inputs, self.inputs);
            k.dropout(x, dropout.key(slot), dropout.p, dropout.rows, out)?;
            let dropped = Mat::new(&scratch.dropped, rows, self.inputs, self.inputs);
            let ds = Mat::new(&scratch.ds, rows, rp, rp).columns(slot.rank_offset..slot.rank_offset + r);
            let da = MatMut { at: slot.a.start, ..MatMut::new(gradients, r, self.inputs, self.inputs) };
            k.gemm_full(1.0, ds.t(), dropped, 1.0, da)?;
        }
        Ok(())
    }
}
