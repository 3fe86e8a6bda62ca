//! One decoder block, forward and backward.
//!
//! ```text
//! m = x + O(attention(rope(QKV(norm1(x)))))        y = m + Down(swiglu(GateUp(norm2(m))))
//! ```
//!
//! The last block of a step computes only the selected rows from the attention's queries on: `queries` of `rows`.

use tunesmith_ops::{Attention, AttentionGradients, Index, Kernels, Mat, MatMut, RopeTable, Sequences};

use super::group::{Dropout, LoraGroup};
use super::workspace::{AttentionTape, MlpTape, Scratch, Widths};
use crate::ModelConfig;
use crate::error::Result;

/// The frozen weights and LoRA updates of one block.
#[derive(Debug)]
pub(super) struct Block<K: Kernels> {
    pub(super) norm1: K::Buf,
    pub(super) qkv: LoraGroup<K>,
    pub(super) o: LoraGroup<K>,
    pub(super) norm2: K::Buf,
    pub(super) gate_up: LoraGroup<K>,
    pub(super) down: LoraGroup<K>,
}

/// What a block is told about the batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cx<'a, K> {
    pub(super) k: &'a K,
    pub(super) config: &'a ModelConfig,
    pub(super) widths: Widths,
    pub(super) table: &'a RopeTable,
    /// `[rows]`
    pub(super) positions: &'a Index,
    pub(super) sequences: &'a Sequences,
    /// The rows that go on past the attention, when they are not all.
    pub(super) selected: Option<&'a Index>,
    pub(super) dropout: Option<Dropout<'a>>,
    /// Dropout with the names of the selected rows.
    pub(super) dropout_selected: Option<Dropout<'a>>,
}

impl<K> Cx<'_, K> {
    pub(super) fn rows(&self) -> usize {
        self.positions.len()
    }

    pub(super) fn queries(&self) -> usize {
        self.selected.map_or(self.rows(), |rows| rows.len())
    }

    pub(super) fn attention(&self) -> Attention<'_> {
        Attention {
            sequences: self.sequences,
            heads: self.config.num_attention_heads,
            kv_heads: self.config.num_key_value_heads,
            head_dim: self.config.head_dim,
            window: self.config.sliding_window,
        }
    }

    fn eps(&self) -> f32 {
        self.config.rms_norm_eps as f32
    }
}

impl<K: Kernels> Block<K> {
    pub(super) fn groups(&self) -> [&LoraGroup<K>; 4] {
        [&self.qkv, &self.o, &self.gate_up, &self.down]
    }

    pub(super) fn groups_mut(&mut self) -> [&mut LoraGroup<K>; 4] {
        [&mut self.qkv, &mut self.o, &mut self.gate_up, &mut self.down]
    }

    /// norm1, QKV and rope: fills `tape.rstd`, `tape.s_qkv` and `tape.qkv`.
    pub(super) fn forward_qkv(
        &self,
        cx: &Cx<'_, K>,
        x: &K::Buf,
        tape: &mut AttentionTape<K>,
        scratch: &mut Scratch<K>,
    ) -> Result<()> {
        let (k, n, w) = (cx.k, cx.rows(), cx.widths);
        let x = Mat::new(x, n, w.d, w.d);
        let xn = MatMut::new(&mut scratch.xn, n, w.d, self.qkv.input_ld());
        k.rms_norm(x, &self.norm1, cx.eps(), xn, &mut tape.rstd)?;
        self.qkv.down(k, &mut scratch.xn, n, &mut tape.s_qkv, cx.dropout, &mut scratch.group)?;
        let width = w.q + 2 * w.kv;
        self.qkv.forward(k, &scratch.xn, 0.0, MatMut::new(&mut tape.qkv, n, width, width))?;
        let rotated = MatMut::new(&mut tape.qkv, n, w.q + w.kv, width);
        Ok(k.rope(rotated, cx.positions, cx.table, false)?)
    }

    /// The attention half; with `middle`, also its output projection onto the residual.
    pub(super) fn forward_attention(
        &self,
        cx: &Cx<'_, K>,
        x: &K::Buf,
        tape: &mut AttentionTape<K>,
        middle: Option<&mut K::Buf>,
        scratch: &mut Scratch<K>,
    ) -> Result<()> {
        self.forward_qkv(cx, x, tape, scratch)?;
        let (k, n, m, w) = (cx.k, cx.rows(), cx.queries(), cx.widths);
        let width = w.q + 2 * w.kv;
        let qkv = Mat::new(&tape.qkv, n, width, width);
        let mut q = qkv.columns(0..w.q);
        if let Some(selected) = cx.selected {
            k.gather_rows(q, selected, MatMut::new(&mut scratch.q, m, w.q, w.q))?;
            q = Mat::new(&scratch.q, m, w.q, w.q);
        }
        let (keys, values) = (qkv.columns(w.q..w.q + w.kv), qkv.columns(w.q + w.kv..width));
        let out = MatMut::new(&mut tape.out, m, w.q, self.o.input_ld());
        k.attention(cx.attention(), q, keys, values, out, Some(&mut tape.lse))?;
        match middle {
            Some(middle) => self.finish_attention(cx, x, tape, middle, scratch),
            None => self.down_o(cx, tape, scratch),
        }
    }

    fn down_o(&self, cx: &Cx<'_, K>, tape: &mut AttentionTape<K>, scratch: &mut Scratch<K>) -> Result<()> {
        let m = cx.queries();
        self.o.down(cx.k, &mut tape.out, m, &mut tape.s_o, cx.dropout_selected, &mut scratch.group)
    }

    /// The output projection of `tape.out` onto the residual.
    pub(super) fn finish_attention(
        &self,
        cx: &Cx<'_, K>,
        x: &K::Buf,
        tape: &mut AttentionTape<K>,
        middle: &mut K::Buf,
        scratch: &mut Scratch<K>,
    ) -> Result<()> {
        let (n, m, d) = (cx.rows(), cx.queries(), cx.widths.d);
        self.down_o(cx, tape, scratch)?;
        let x = Mat::new(x, n, d, d);
        let Some(selected) = cx.selected else {
            return self.o.forward_onto(cx.k, &tape.out, x, MatMut::new(middle, m, d, d));
        };
        // Only some rows of the residual stream go on.
        cx.k.gather_rows(x, selected, MatMut::new(middle, m, d, d))?;
        self.o.forward(cx.k, &tape.out, 1.0, MatMut::new(middle, m, d, d))
    }

    /// The feed-forward half up to `h`; with `y`, also the down projection onto the residual.
    pub(super) fn forward_mlp(
        &self,
        cx: &Cx<'_, K>,
        middle: &K::Buf,
        tape: &mut MlpTape<K>,
        y: Option<&mut K::Buf>,
        scratch: &mut Scratch<K>,
    ) -> Result<()> {
        let (k, m, w) = (cx.k, cx.queries(), cx.widths);
        let x = Mat::new(middle, m, w.d, w.d);
        let xn = MatMut::new(&mut scratch.xn, m, w.d, self.gate_up.input_ld());
        k.rms_norm(x, &self.norm2, cx.eps(), xn, &mut tape.rstd)?;
        let dropout = cx.dropout_selected;
        self.gate_up.down(k, &mut scratch.xn, m, &mut tape.s_gate_up, dropout, &mut scratch.group)?;
        let ld = self.gate_up.output_ld();
        self.gate_up.forward(k, &scratch.xn, 0.0, MatMut::new(&mut tape.gate_up, m, 2 * w.f, ld))?;
        let gate_up = Mat::new(&tape.gate_up, m, 2 * w.f, ld);
        k.swiglu(gate_up, MatMut::new(&mut scratch.h, m, w.f, self.down.input_ld()))?;
        self.down.down(k, &mut scratch.h, m, &mut tape.s_down, dropout, &mut scratch.group)?;
        let Some(y) = y else { return Ok(()) };
        self.down.forward_onto(k, &scratch.h, x, MatMut::new(y, m, w.d, w.d))
    }

    /// Backward of the feed-forward half: `dx` holds dy and becomes dm, `[queries, d]`.
    pub(super) fn backward_mlp(
        &self,
        cx: &Cx<'_, K>,
        middle: &K::Buf,
        tape: &mut MlpTape<K>,
        dx: &mut K::Buf,
        scratch: &mut Scratch<K>,
        gradients: &mut K::Full,
    ) -> Result<()> {
        let (k, m, w, dropout) = (cx.k, cx.queries(), cx.widths, cx.dropout_selected);
        let group = &mut scratch.group;
        let dh = MatMut::new(&mut scratch.dh, m, w.f, w.f);
        self.down.backward_input(k, dx, w.dx, m, Some(dh), dropout, group)?;
        let (ld, h_ld) = (self.gate_up.output_ld(), self.down.input_ld());
        let (dh, gate_up) =
            (Mat::new(&scratch.dh, m, w.f, w.f), MatMut::new(&mut tape.gate_up, m, 2 * w.f, ld));
        k.swiglu_backward(dh, gate_up, MatMut::new(&mut scratch.h, m, w.f, h_ld))?;
        let (h, s) = (Mat::new(&scratch.h, m, w.f, h_ld), s_view(&tape.s_down, m, &self.down));
        self.down.backward_parameters(k, (dx, w.dx), h, s, gradients, dropout, group)?;

        let dxn = MatMut::new(&mut scratch.dxn, m, w.d, w.d);
        self.gate_up.backward_input(k, &mut tape.gate_up, ld, m, Some(dxn), dropout, group)?;
        let (x, xn_ld) = (Mat::new(middle, m, w.d, w.d), self.gate_up.input_ld());
        let (dxn, dm) = (Mat::new(&scratch.dxn, m, w.d, w.d), MatMut::new(dx, m, w.d, w.dx));
        let trained = !self.gate_up.slots.is_empty();
        let xn = trained.then(|| MatMut::new(&mut scratch.xn, m, w.d, xn_ld));
        k.rms_norm_backward(dxn, x, &self.norm2, &tape.rstd, dm, xn)?;
        if trained {
            let (xn, s) = (Mat::new(&scratch.xn, m, w.d, xn_ld), s_view(&tape.s_gate_up, m, &self.gate_up));
            self.gate_up.backward_parameters(k, (&tape.gate_up, ld), xn, s, gradients, dropout, group)?;
        }
        Ok(())
    }

    /// Backward of the attention half: `dx` holds dm `[queries, d]` and becomes, if `need_dx`, dx `[rows, d]`.
    /// `dx_rows` is used for the change from queries to rows.
    pub(super) fn backward_attention(
        &self,
        cx: &Cx<'_, K>,
        x: &K::Buf,
        tape: &mut AttentionTape<K>,
        dx: &mut K::Buf,
        dx_rows: &mut K::Buf,
        need_dx: bool,
        scratch: &mut Scratch<K>,
        gradients: &mut K::Full,
    ) -> Result<()> {
        let (k, n, m, w) = (cx.k, cx.rows(), cx.queries(), cx.widths);
        let group = &mut scratch.group;
        let dropout = cx.dropout_selected;
        let d_attention = MatMut::new(&mut scratch.d_attention, m, w.q, w.q);
        self.o.backward_input(k, dx, w.dx, m, Some(d_attention), dropout, group)?;
        let out = Mat::new(&tape.out, m, w.q, self.o.input_ld());
        self.o.backward_parameters(
            k,
            (dx, w.dx),
            out,
            s_view(&tape.s_o, m, &self.o),
            gradients,
            dropout,
            group,
        )?;

        let (width, d_ld) = (w.q + 2 * w.kv, self.qkv.output_ld());
        let qkv = Mat::new(&tape.qkv, n, width, width);
        let q = match cx.selected {
            Some(selected) => {
                k.gather_rows(qkv.columns(0..w.q), selected, MatMut::new(&mut scratch.q, m, w.q, w.q))?;
                Mat::new(&scratch.q, m, w.q, w.q)
            }
            None => qkv.columns(0..w.q),
        };
        let (keys, values) = (qkv.columns(w.q..w.q + w.kv), qkv.columns(w.q + w.kv..width));
        let d_out = Mat::new(&scratch.d_attention, m, w.q, w.q);
        let dqkv = MatMut::new(&mut scratch.dqkv, n, width, d_ld);
        let written = match cx.selected {
            Some(_) => AttentionGradients::Apart {
                d_q: MatMut::new(&mut scratch.dq, m, w.q, w.q),
                d_kv: dqkv.columns(w.q..width),
            },
            None => AttentionGradients::Fused(dqkv),
        };
        k.attention_backward(cx.attention(), q, keys, values, out, &tape.lse, d_out, written)?;
        if let Some(selected) = cx.selected {
            let dq = Mat::new(&scratch.dq, m, w.q, w.q);
            k.scatter_rows(dq, selected, MatMut::new(&mut scratch.dqkv, n, w.q, d_ld))?;
        }
        k.rope(MatMut::new(&mut scratch.dqkv, n, w.q + w.kv, d_ld), cx.positions, cx.table, true)?;

        let dxn = need_dx.then(|| MatMut::new(&mut scratch.dxn, n, w.d, w.d));
        self.qkv.backward_input(k, &mut scratch.dqkv, d_ld, n, dxn, cx.dropout, group)?;
        let (x, xn_ld) = (Mat::new(x, n, w.d, w.d), self.qkv.input_ld());
        let trained = !self.qkv.slots.is_empty();
        let xn = trained.then(|| MatMut::new(&mut scratch.xn, n, w.d, xn_ld));
        if need_dx {
            if let Some(selected) = cx.selected {
                let dm = Mat::new(&*dx, m, w.d, w.dx);
                k.scatter_rows(dm, selected, MatMut::new(dx_rows, n, w.d, w.dx))?;
                std::mem::swap(dx, dx_rows);
            }
            let (dxn, dx) = (Mat::new(&scratch.dxn, n, w.d, w.d), MatMut::new(dx, n, w.d, w.dx));
            k.rms_norm_backward(dxn, x, &self.norm1, &tape.rstd, dx, xn)?;
        } else if let Some(xn) = xn {
            k.rms_norm(x, &self.norm1, cx.eps(), xn, &mut tape.rstd)?;
        }
        if trained {
            let (xn, s) = (Mat::new(&scratch.xn, n, w.d, xn_ld), s_view(&tape.s_qkv, n, &self.qkv));
            self.qkv.backward_parameters(k, (&scratch.dqkv, d_ld), xn, s, gradients, cx.dropout, group)?;
        }
        Ok(())
    }
}

fn s_view<'a, K: Kernels>(s: &'a K::Buf, rows: usize, group: &LoraGroup<K>) -> Mat<'a, K::Buf> {
    Mat::new(s, rows, group.ranks, group.ranks)
}
