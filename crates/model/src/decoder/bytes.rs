//! What a decoder takes in memory, byte for byte, from its sizes alone: nothing is loaded and nothing allocated.
//!
//! Each function stands for an allocation of `load`, `group`, `workspace` or `cache`; a test allocates them and demands
//! the same number.

use tunesmith_ops::{Calls, Storage};

use super::Keep;
use crate::ModelConfig;
use crate::adapter::{AdapterLayout, Group};

/// Bytes of an f32.
const FULL: usize = 4;

/// The sizes of a model with its adapter on one kind of device.
#[derive(Debug, Clone, PartialEq)]
pub struct Footprint {
    pub(super) config: ModelConfig,
    storage: Storage,
    pub(super) layout: AdapterLayout,
    /// Padded ranks of each layer's groups, in the order of [`Group::ALL`].
    pub(super) ranks: Vec<[usize; 4]>,
}

/// Bytes of the frozen weights with what LoRA adds to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WeightBytes {
    /// The seven linears of every block.
    pub linears: u64,
    /// What the augmented matrices have beside the weights: A, s·B, and their padding.
    pub augmentation: u64,
    /// Embedding, output head and norms.
    pub rest: u64,
}

impl WeightBytes {
    /// All of them.
    pub fn total(self) -> u64 {
        self.linears + self.augmentation + self.rest
    }
}

/// Values for each token: stored ones, and f32 ones.
#[derive(Debug, Clone, Copy, Default)]
struct PerToken {
    stored: usize,
    full: usize,
}

impl Footprint {
    /// The footprint of a model of this configuration with the updates of `layout`.
    pub fn new(config: &ModelConfig, layout: &AdapterLayout, storage: Storage) -> Self {
        let ranks = |layer, group| {
            let slots = layout.group(layer, group);
            slots.iter().map(|s| s.site.rank).sum::<usize>().next_multiple_of(storage.rank_padding)
        };
        let ranks = (0..config.num_hidden_layers).map(|layer| Group::ALL.map(|g| ranks(layer, g)));
        Self { config: config.clone(), storage, layout: layout.clone(), ranks: ranks.collect() }
    }

    /// How the device stores values.
    pub fn storage(&self) -> Storage {
        self.storage
    }

    /// Width of the residual stream.
    pub fn width(&self) -> usize {
        self.config.hidden_size
    }

    /// Decoder blocks.
    pub fn layers(&self) -> usize {
        self.ranks.len()
    }

    /// The lowest block with an update: below it nothing is computed backward, so nothing again either.
    pub fn first_trained(&self) -> Option<usize> {
        self.layout.slots().iter().map(|s| s.site.layer).min()
    }

    /// The frozen weights, as [`super::Decoder::load`] lays them out.
    pub fn weights(&self) -> WeightBytes {
        let c = &self.config;
        let (mut linears, mut all) = (0, 0);
        for ranks in &self.ranks {
            for (group, ranks) in Group::ALL.into_iter().zip(ranks) {
                let (outputs, inputs) = self.shape(group);
                linears += outputs * inputs;
                all += (outputs + ranks) * (inputs + ranks);
            }
        }
        let tables = if c.tie_word_embeddings { 1 } else { 2 };
        let rest = (tables * c.vocab_size + 2 * self.layers() + 1) * c.hidden_size;
        let bytes = |values: usize| (values * self.storage.bytes) as u64;
        WeightBytes { linears: bytes(linears), augmentation: bytes(all - linears), rest: bytes(rest) }
    }

    /// The LoRA parameters, which a decoder holds in f32.
    pub fn parameters(&self) -> u64 {
        (self.layout.len() * FULL) as u64
    }

    /// The table of the places where the augmented matrices have their copies: two matrices for each update.
    pub fn copies(&self) -> u64 {
        if self.layout.is_empty() {
            return 0;
        }
        self.storage.copies_bytes(self.layout.len(), 2 * self.layout.slots().len())
    }

    /// Gradients and both moments of AdamW, which a trainer holds beside them.
    pub fn states(&self) -> u64 {
        3 * self.parameters()
    }

    /// What one block keeps of `tokens` tokens.
    pub fn kept(&self, tokens: usize, keep: Keep) -> u64 {
        self.bytes(tokens, self.tape(keep))
    }

    /// What all blocks share in training, if `least` is the least that any of them keeps; `dropout` makes room for dropped
    /// inputs.
    pub fn shared(&self, tokens: usize, least: Keep, dropout: bool) -> u64 {
        self.bytes(tokens, self.shared_of(true, least, dropout))
    }

    /// A whole training workspace: [`super::Decoder::training_workspace`].
    pub fn training(&self, tokens: usize, keep: &[Keep], dropout: bool) -> u64 {
        let keep = |layer: usize| keep.get(layer).copied().unwrap_or_default();
        let kept: u64 = (0..self.layers()).map(|layer| self.kept(tokens, keep(layer))).sum();
        let least = (0..self.layers()).map(keep).max().unwrap_or_default();
        kept + self.shared(tokens, least, dropout)
    }

    /// A whole workspace without gradients: [`super::Decoder::evaluation_workspace`].
    pub fn evaluation(&self, tokens: usize) -> u64 {
        self.kept(tokens, Keep::Input) + self.bytes(tokens, self.shared_of(false, Keep::Input, false))
    }

    /// Keys and values of a text of up to `capacity` tokens, the workspace that it is read with, and the logits of a token:
    /// [`super::Decoder::cache`].
    pub fn cache(&self, capacity: usize, chunk: usize) -> u64 {
        let width = 2 * self.config.key_value_size();
        let values = self.layers() * capacity * width + self.config.vocab_size;
        (values * self.storage.bytes) as u64 + self.evaluation(chunk.clamp(1, capacity.max(1)))
    }

    /// The largest calls of a training on batches of `rows` tokens, in documents of up to `positions`.
    pub fn calls(&self, rows: usize, positions: usize, dropout: bool) -> Calls {
        let c = &self.config;
        Calls {
            rows,
            training: true,
            dropout,
            vocab: c.vocab_size,
            heads: c.num_attention_heads,
            head_dim: c.head_dim,
            width: c.hidden_size,
            positions,
        }
    }

    /// Outputs and inputs of a group's matrix.
    pub(super) fn shape(&self, group: Group) -> (usize, usize) {
        let outputs = group.linears().iter().map(|l| l.shape(&self.config).0).sum();
        (outputs, group.linears().first().map_or(0, |l| l.shape(&self.config).1))
    }

    /// The most padded ranks that a group has in any block.
    fn most(&self, group: Group) -> usize {
        let at = Group::ALL.iter().position(|g| *g == group).unwrap_or(0);
        self.ranks.iter().map(|ranks| ranks[at]).max().unwrap_or(0)
    }

    fn bytes(&self, tokens: usize, of: PerToken) -> u64 {
        (tokens * (of.stored * self.storage.bytes + of.full * FULL)) as u64
    }

    fn attention(&self) -> PerToken {
        let c = &self.config;
        let (qkv, o) = (self.most(Group::Qkv), self.most(Group::O));
        let width = c.query_size() + 2 * c.key_value_size();
        PerToken { stored: qkv + width + (c.query_size() + o) + o, full: 1 + c.num_attention_heads }
    }

    fn mlp(&self) -> PerToken {
        let (gate_up, down) = (self.most(Group::GateUp), self.most(Group::Down));
        PerToken { stored: gate_up + (2 * self.config.intermediate_size + gate_up) + down, full: 1 }
    }

    fn tape(&self, keep: Keep) -> PerToken {
        let d = PerToken { stored: self.config.hidden_size, full: 0 };
        let mut all = d;
        for (kept, part) in [
            (keep <= Keep::NoMlp, self.attention()),
            (keep <= Keep::Residuals, d),
            (keep == Keep::All, self.mlp()),
        ] {
            if kept {
                all = all.and(part);
            }
        }
        all
    }

    fn shared_of(&self, training: bool, least: Keep, dropout: bool) -> PerToken {
        let c = &self.config;
        let (d, f, q, kv) = (c.hidden_size, c.intermediate_size, c.query_size(), c.key_value_size());
        let most = |group| self.most(group);
        let widest = Group::ALL.map(|g| self.shape(g).1).into_iter().max().unwrap_or(0);
        let in_training = |values: usize| if training { values } else { 0 };
        // Of the groups: dS, and with dropout an input and its gradient.
        let ranks = Group::ALL.map(most).into_iter().max().unwrap_or(0);
        let group = in_training(ranks) + if dropout { 2 * widest } else { 0 };
        let xn = d + most(Group::Qkv).max(most(Group::GateUp));
        let h = f + most(Group::Down);
        let gradients = q + (q + 2 * kv + most(Group::Qkv)) + q + f + d;
        let dx = d + most(Group::O).max(most(Group::Down));
        // Then hidden and normed; of f32, the last norm's statistic and the losses.
        let stored = group + xn + h + q + in_training(gradients + 2 * dx) + 2 * d;
        let mut all = PerToken { stored, full: 2 };
        let again = |on: bool, part: PerToken| if on { part } else { PerToken::default() };
        all = all.and(again(least > Keep::NoMlp, self.attention()));
        all = all.and(again(least > Keep::Residuals, PerToken { stored: d, full: 0 }));
        all.and(again(least > Keep::All, self.mlp()))
    }
}

impl PerToken {
    fn and(self, other: Self) -> Self {
        Self { stored: self.stored + other.stored, full: self.full + other.full }
    }
}

#[cfg(test)]
mod tests;
