//! Every buffer of a forward and a backward pass, allocated once for the largest batch.

use tunesmith_ops::Kernels;

use super::Decoder;
use super::group::{GroupScratch, LoraGroup};
use crate::error::Result;

/// What a block keeps between its forward and its backward; the rest is computed again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Keep {
    /// Everything that the backward reads; nothing is computed twice.
    #[default]
    All,
    /// All but the gate and up projections.
    NoMlp,
    /// The two residual inputs of the block.
    Residuals,
    /// The block's input.
    Input,
}

/// What the attention half of a block leaves behind.
#[derive(Debug)]
pub(super) struct AttentionTape<K: Kernels> {
    pub(super) rstd: K::Full,
    /// `[rows, rp]`
    pub(super) s_qkv: K::Buf,
    /// `[rows, q + k + v]`, q and k rotated
    pub(super) qkv: K::Buf,
    /// `[queries, heads * head_dim | rp]`
    pub(super) out: K::Buf,
    /// `[queries, rp]`
    pub(super) s_o: K::Buf,
    pub(super) lse: K::Full,
}

/// What the feed-forward half of a block leaves behind.
#[derive(Debug)]
pub(super) struct MlpTape<K: Kernels> {
    pub(super) rstd: K::Full,
    /// `[queries, rp]`
    pub(super) s_gate_up: K::Buf,
    /// `[queries, 2 f | rp]`
    pub(super) gate_up: K::Buf,
    /// `[queries, rp]`
    pub(super) s_down: K::Buf,
}

/// What one block keeps.
#[derive(Debug)]
pub(super) struct Tape<K: Kernels> {
    /// `[rows, d]`
    pub(super) input: K::Buf,
    pub(super) attention: Option<AttentionTape<K>>,
    /// `[queries, d]`
    pub(super) middle: Option<K::Buf>,
    pub(super) mlp: Option<MlpTape<K>>,
}

/// Buffers that all blocks share.
#[derive(Debug)]
pub(super) struct Scratch<K: Kernels> {
    pub(super) group: GroupScratch<K>,
    /// Normed input of a group: `[rows, d | rp]`
    pub(super) xn: K::Buf,
    /// `[queries, f | rp]`
    pub(super) h: K::Buf,
    /// `[queries, heads * head_dim]`: queries of the selected rows.
    pub(super) q: K::Buf,
    /// Gradients.
    pub(super) dq: K::Buf,
    pub(super) dqkv: K::Buf,
    pub(super) d_attention: K::Buf,
    pub(super) dh: K::Buf,
    pub(super) dxn: K::Buf,
    /// What a block that does not keep it recomputes into.
    pub(super) attention: Option<AttentionTape<K>>,
    pub(super) middle: Option<K::Buf>,
    pub(super) mlp: Option<MlpTape<K>>,
}

/// The memory of one training or evaluation step.
#[derive(Debug)]
pub struct Workspace<K: Kernels> {
    pub(super) capacity: usize,
    pub(super) training: bool,
    pub(super) tapes: Vec<Tape<K>>,
    pub(super) scratch: Scratch<K>,
    /// The residual stream after the last block and its norm: `[queries, d]`.
    pub(super) hidden: K::Buf,
    pub(super) normed: K::Buf,
    pub(super) rstd: K::Full,
    /// The residual stream's gradient, and a second one for the change from queries to rows: `[rows, d | rp]`.
    pub(super) dx: K::Buf,
    pub(super) dx_rows: K::Buf,
    pub(super) losses: K::Full,
}

/// Row strides and widths that several buffers share.
#[derive(Debug, Clone, Copy)]
pub(super) struct Widths {
    pub(super) d: usize,
    pub(super) f: usize,
    pub(super) q: usize,
    pub(super) kv: usize,
    pub(super) heads: usize,
    /// Of a residual gradient: room for dS of o and of down.
    pub(super) dx: usize,
}

fn widest<K: Kernels>(decoder: &Decoder<K>, f: impl Fn(&LoraGroup<K>) -> usize) -> usize {
    decoder.blocks.iter().flat_map(super::block::Block::groups).map(f).max().unwrap_or(0)
}

impl<K: Kernels> Decoder<K> {
    pub(super) fn widths(&self) -> Widths {
        let c = &self.config;
        let d = c.hidden_size;
        let residual = self.blocks.iter().map(|b| b.o.ranks.max(b.down.ranks)).max().unwrap_or(0);
        Widths {
            d,
            f: c.intermediate_size,
            q: c.query_size(),
            kv: c.key_value_size(),
            heads: c.num_attention_heads,
            dx: d + residual,
        }
    }

    fn attention_tape(&self, n: usize) -> Result<AttentionTape<K>> {
        let (k, w) = (&self.kernels, self.widths());
        let qkv = self.blocks.iter().map(|b| b.qkv.ranks).max().unwrap_or(0);
        let o = self.blocks.iter().map(|b| b.o.ranks).max().unwrap_or(0);
        Ok(AttentionTape {
            rstd: k.zeros_full(n)?,
            s_qkv: k.zeros(n * qkv)?,
            qkv: k.zeros(n * (w.q + 2 * w.kv))?,
            out: k.zeros(n * (w.q + o))?,
            s_o: k.zeros(n * o)?,
            lse: k.zeros_full(n * w.heads)?,
        })
    }

    fn mlp_tape(&self, n: usize) -> Result<MlpTape<K>> {
        let (k, w) = (&self.kernels, self.widths());
        let gate_up = self.blocks.iter().map(|b| b.gate_up.ranks).max().unwrap_or(0);
        let down = self.blocks.iter().map(|b| b.down.ranks).max().unwrap_or(0);
        Ok(MlpTape {
            rstd: k.zeros_full(n)?,
            s_gate_up: k.zeros(n * gate_up)?,
            gate_up: k.zeros(n * (2 * w.f + gate_up))?,
            s_down: k.zeros(n * down)?,
        })
    }

    /// Buffers for training on micro-batches of up to `capacity` tokens; `keep` says what each block keeps.
    /// `dropout` makes room for dropped inputs.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub fn training_workspace(&self, capacity: usize, keep: &[Keep], dropout: bool) -> Result<Workspace<K>> {
        self.workspace(capacity, Some(keep), dropout)
    }

    /// Buffers for losses and logits without gradients, on batches of up to `capacity` tokens.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub fn evaluation_workspace(&self, capacity: usize) -> Result<Workspace<K>> {
        self.workspace(capacity, None, false)
    }

    fn workspace(&self, n: usize, keep: Option<&[Keep]>, dropout: bool) -> Result<Workspace<K>> {
        let (k, w) = (&self.kernels, self.widths());
        k.reserve(n);
        let training = keep.is_some();
        // Gradient buffers exist in training only.
        let grad = |len: usize| k.zeros(if training { len } else { 0 });
        let mut tapes = Vec::new();
        let (mut no_attention, mut no_middle, mut no_mlp) = (!training, !training, !training);
        for layer in 0..if training { self.blocks.len() } else { 1 } {
            let keep = keep.map_or(Keep::Input, |keep| keep.get(layer).copied().unwrap_or_default());
            tapes.push(Tape {
                input: k.zeros(n * w.d)?,
                attention: (keep <= Keep::NoMlp).then(|| self.attention_tape(n)).transpose()?,
                middle: (keep <= Keep::Residuals).then(|| k.zeros(n * w.d)).transpose()?,
                mlp: (keep == Keep::All).then(|| self.mlp_tape(n)).transpose()?,
            });
            no_attention |= keep > Keep::NoMlp;
            no_middle |= keep > Keep::Residuals;
            no_mlp |= keep > Keep::All;
        }
        let inputs = widest(self, |g| g.inputs);
        let scratch = Scratch {
            group: GroupScratch {
                ds: grad(n * widest(self, |g| g.ranks))?,
                dropped: k.zeros(if dropout { n * inputs } else { 0 })?,
                part: k.zeros(if dropout { n * inputs } else { 0 })?,
            },
            xn: k.zeros(
                n * self.blocks.iter().map(|b| b.qkv.input_ld().max(b.gate_up.input_ld())).max().unwrap_or(0),
            )?,
            h: k.zeros(n * self.blocks.iter().map(|b| b.down.input_ld()).max().unwrap_or(0))?,
            q: k.zeros(n * w.q)?,
            dq: grad(n * w.q)?,
            dqkv: grad(n * self.blocks.iter().map(|b| b.qkv.output_ld()).max().unwrap_or(0))?,
            d_attention: grad(n * w.q)?,
            dh: grad(n * w.f)?,
            dxn: grad(n * w.d)?,
            attention: no_attention.then(|| self.attention_tape(n)).transpose()?,
            middle: no_middle.then(|| k.zeros(n * w.d)).transpose()?,
            mlp: no_mlp.then(|| self.mlp_tape(n)).transpose()?,
        };
        Ok(Workspace {
            capacity: n,
            training,
            tapes,
            scratch,
            hidden: k.zeros(n * w.d)?,
            normed: k.zeros(n * w.d)?,
            rstd: k.zeros_full(n)?,
            dx: grad(n * w.dx)?,
            dx_rows: grad(n * w.dx)?,
            losses: k.zeros_full(n)?,
        })
    }
}
