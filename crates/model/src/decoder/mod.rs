//! The decoder: explicit forward and backward over plain buffers, no autograd.
//!
//! A [`Decoder`] holds the frozen weights and the LoRA parameters of one model on one device. A [`Workspace`] holds
//! every activation and gradient, made once for the largest batch. Documents are never padded each: a [`Batch`] lays them
//! one after another, and only rows whose prediction counts go through the last block's feed-forward half and the head.

mod batch;
mod block;
mod bytes;
mod cache;
mod flops;
mod group;
mod load;
mod step;
mod workspace;

use tunesmith_ops::{AdamW, Flat, Kernels, Refresh, RopeTable, Segment};

pub use batch::{Batch, Document};
pub use bytes::{Footprint, WeightBytes};
pub use cache::KvCache;
pub use load::WeightSource;
pub use workspace::{Keep, Workspace};

use crate::ModelConfig;
use crate::adapter::AdapterLayout;
use crate::error::{Error, Result};
use block::Block;
use group::LoraGroup;

/// Dropout of one optimizer step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DropoutStep {
    /// Probability of dropping an input of a LoRA down-projection.
    pub p: f32,
    /// Seed of the run.
    pub seed: u64,
    /// The optimizer step, from 1.
    pub step: u32,
}

/// A Llama or Mistral decoder with LoRA updates.
#[derive(Debug)]
pub struct Decoder<K: Kernels> {
    kernels: K,
    config: ModelConfig,
    embedding: K::Buf,
    blocks: Vec<Block<K>>,
    norm: K::Buf,
    /// `None` when tied to the embedding.
    head: Option<K::Buf>,
    table: RopeTable,
    layout: AdapterLayout,
    parameters: K::Full,
    /// Where A and s·B of the parameters lie in the blocks' groups.
    copies: K::Copies,
}

/// The table of the copies that the groups of `blocks` have of `n` parameters.
fn copies<K: Kernels>(k: &K, blocks: &[Block<K>], n: usize) -> Result<K::Copies> {
    let groups: Vec<_> = blocks.iter().flat_map(Block::groups).collect();
    let segments: Vec<Segment> = groups.iter().enumerate().flat_map(|(to, g)| g.segments(to)).collect();
    let to: Vec<&K::Buf> = groups.iter().map(|g| g.weights()).collect();
    Ok(k.copies(n, &to, &segments)?)
}

impl<K: Kernels> Decoder<K> {
    /// The device's kernels.
    pub fn kernels(&self) -> &K {
        &self.kernels
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Where each LoRA matrix lies in the flat parameters.
    pub fn layout(&self) -> &AdapterLayout {
        &self.layout
    }

    /// One AdamW update of the flat LoRA parameters from flat gradients and moments of the same layout, clipped to a norm
    /// of `max_norm`, and of the matrices that the forward and backward multiply with. It does not take place where the
    /// guard is tripped or the norm is not finite: see [`Kernels::clip_and_update`], and for what it gives.
    ///
    /// # Errors
    /// If a buffer has another length, or the device fails.
    pub fn update(
        &mut self,
        step: AdamW,
        max_norm: Option<f64>,
        guard: &mut K::Guard,
        gradients: &K::Full,
        m: &mut K::Full,
        v: &mut K::Full,
    ) -> Result<K::Later> {
        let groups = self.blocks.iter_mut().flat_map(Block::groups_mut);
        let mut to: Vec<&mut K::Buf> = groups.map(LoraGroup::weights_mut).collect();
        let flat = Flat { p: &mut self.parameters, g: gradients, m, v };
        let refresh = Refresh { copies: &self.copies, to: &mut to };
        Ok(self.kernels.clip_and_update(step, max_norm, guard, flat, refresh)?)
    }

    /// The flat LoRA parameters on the host.
    ///
    /// # Errors
    /// If the device fails.
    pub fn parameters(&self) -> Result<Vec<f32>> {
        Ok(self.kernels.read_full(&self.parameters)?)
    }

    /// Replaces the LoRA parameters.
    ///
    /// # Errors
    /// If there are not as many as the layout has, or the device fails.
    pub fn set_parameters(&mut self, values: &[f32]) -> Result<()> {
        if values.len() != self.layout.len() {
            let (given, needed) = (values.len(), self.layout.len());
            return Err(Error::internal(format!("{given} LoRA parameters for a layout of {needed}")));
        }
        self.kernels.write_full(values, &mut self.parameters, 0)?;
        self.refresh()
    }

    /// Brings changed LoRA parameters into the matrices that the forward and backward multiply with.
    ///
    /// # Errors
    /// If the device fails.
    fn refresh(&mut self) -> Result<()> {
        for block in &mut self.blocks {
            for group in block.groups_mut() {
                group.refresh(&self.kernels, &self.parameters)?;
            }
        }
        Ok(())
    }

    /// Makes the rotary table long enough for documents of `positions` tokens.
    ///
    /// Positions beyond the model's `max_position_embeddings` are computed all the same; whoever makes the
    /// documents says whether they may be that long.
    pub fn prepare_positions(&mut self, positions: usize) {
        if positions > self.table.positions() {
            let frequencies = self.config.rope.inverse_frequencies(self.config.head_dim);
            self.table = RopeTable::new(&frequencies, positions);
        }
    }
}
