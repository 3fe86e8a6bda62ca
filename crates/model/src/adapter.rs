//! Where each LoRA matrix lies in the flat parameter buffer.

use std::ops::Range;

use tunesmith_ops::Philox;

use crate::ModelConfig;
use crate::peft::{AdapterTensor, Linear, LoadedTensor, Site};

/// Linears that share their input and are multiplied as one matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// q, k and v.
    Qkv,
    /// The attention output.
    O,
    /// gate and up.
    GateUp,
    /// down.
    Down,
}

impl Group {
    /// All groups of a block, in the order of the forward pass.
    pub const ALL: [Self; 4] = [Self::Qkv, Self::O, Self::GateUp, Self::Down];

    /// The linears of the group, in the order of their rows.
    pub fn linears(self) -> &'static [Linear] {
        match self {
            Self::Qkv => &[Linear::Q, Linear::K, Linear::V],
            Self::O => &[Linear::O],
            Self::GateUp => &[Linear::Gate, Linear::Up],
            Self::Down => &[Linear::Down],
        }
    }
}

/// One LoRA update and its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Slot {
    /// Which linear, rank and scale.
    pub site: Site,
    /// Outputs of the linear.
    pub out: usize,
    /// Inputs of the linear.
    pub input: usize,
    /// First output row of this linear in its group.
    pub row: usize,
    /// First rank column of this update in its group.
    pub rank_offset: usize,
    /// A `[rank, in]` in the flat buffer.
    pub a: Range<usize>,
    /// B `[out, rank]` in the flat buffer.
    pub b: Range<usize>,
}

impl Slot {
    /// Number of this site among all of the model: names its dropout mask and its initial values.
    pub fn number(&self) -> u32 {
        let linear = Linear::ALL.iter().position(|l| *l == self.site.linear).unwrap_or(0);
        (self.site.layer * Linear::ALL.len() + linear) as u32
    }
}

/// All LoRA updates of a model in one flat f32 buffer: group by group, the A matrices of a group one after
/// another (so that they are one `[ranks, in]` matrix), then its B matrices.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterLayout {
    slots: Vec<Slot>,
    len: usize,
}

impl AdapterLayout {
    /// The layout of these sites, which are sorted by layer and linear.
    pub fn new(config: &ModelConfig, sites: &[Site]) -> Self {
        let mut slots = Vec::with_capacity(sites.len());
        let mut at = 0;
        for layer in 0..config.num_hidden_layers {
            for group in Group::ALL {
                let (first, mut row, mut rank_offset) = (slots.len(), 0, 0);
                for &linear in group.linears() {
                    let (out, input) = linear.shape(config);
                    if let Some(&site) = sites.iter().find(|s| s.layer == layer && s.linear == linear) {
                        let a = at..at + site.rank * input;
                        at = a.end;
                        slots.push(Slot { site, out, input, row, rank_offset, a, b: 0..0 });
                        rank_offset += site.rank;
                    }
                    row += out;
                }
                for slot in &mut slots[first..] {
                    slot.b = at..at + slot.out * slot.site.rank;
                    at = slot.b.end;
                }
            }
        }
        Self { slots, len: at }
    }

    /// Every update, in the order of the buffer.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// The updates of one group of one block.
    pub fn group(&self, layer: usize, group: Group) -> Vec<Slot> {
        let mine = |s: &&Slot| s.site.layer == layer && group.linears().contains(&s.site.linear);
        self.slots.iter().filter(mine).cloned().collect()
    }

    /// Trainable parameters.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no update at all.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Fresh parameters as PEFT makes them: A from `kaiming_uniform(a = √5)`, which is U(-1/√in, 1/√in), B zero.
    /// The values depend on the seed and the site only.
    pub fn initial(&self, seed: u64) -> Vec<f32> {
        let rng = Philox::new(seed, 0);
        let mut values = vec![0f32; self.len];
        for slot in &self.slots {
            let bound = 1.0 / (slot.input as f32).sqrt();
            for (block, out) in values[slot.a.clone()].chunks_mut(4).enumerate() {
                let words = rng.words([block as u32, (block >> 32) as u32, slot.number(), 0x1417]);
                for (o, w) in out.iter_mut().zip(words) {
                    *o = (2.0 * Philox::unit(w) - 1.0) * bound;
                }
            }
        }
        values
    }

    /// Key and shape of every tensor of the adapter file.
    pub fn expected(&self) -> Vec<(String, [usize; 2])> {
        self.slots
            .iter()
            .flat_map(|s| {
                let (a, b) = ([s.site.rank, s.input], [s.out, s.site.rank]);
                [(s.site.lora_a_key(), a), (s.site.lora_b_key(), b)]
            })
            .collect()
    }

    /// The flat buffer as named tensors.
    pub fn tensors<'a>(&self, values: &'a [f32]) -> Vec<AdapterTensor<'a>> {
        self.slots
            .iter()
            .flat_map(|s| {
                let (a, b) = ([s.site.rank, s.input], [s.out, s.site.rank]);
                [
                    AdapterTensor { key: s.site.lora_a_key(), shape: a, values: &values[s.a.clone()] },
                    AdapterTensor { key: s.site.lora_b_key(), shape: b, values: &values[s.b.clone()] },
                ]
            })
            .collect()
    }

    /// The flat buffer of loaded tensors, which [`crate::peft::check`] has found complete.
    pub fn flatten(&self, tensors: &[LoadedTensor]) -> Vec<f32> {
        let mut values = vec![0f32; self.len];
        for slot in &self.slots {
            for (key, range) in [(slot.site.lora_a_key(), &slot.a), (slot.site.lora_b_key(), &slot.b)] {
                if let Some(t) = tensors.iter().find(|t| t.key == key && t.values.len() == range.len()) {
                    values[range.clone()].copy_from_slice(&t.values);
                }
            }
        }
        values
    }
}
