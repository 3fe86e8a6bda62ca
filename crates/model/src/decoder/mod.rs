//! The decoder: explicit forward and backward over plain buffers, no autograd.
//!
//! A [`Decoder`] holds the frozen weights and the LoRA parameters of one model on one device. A [`Workspace`] holds
//! every activation and gradient, made once for the largest batch. Documents are never padded: a [`Batch`] lays them one
//! after another, and only rows whose prediction counts go through the last block's feed-forward half and the head.

mod batch;
mod block;
mod bytes;
mod cache;
mod flops;
mod group;
mod load;
mod step;
mod workspace;

use tunesmith_ops::{AdamW, Kernels, RopeTable};

pub use batch::{Batch, Document};
pub use bytes::{Footprint, WeightBytes};
pub use cache::KvCache;
pub use workspace::{Keep, Workspace};

use crate::ModelConfig;
use crate::adapter::AdapterLayout;
use crate::error::{Error, Result};
use block::Block;

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

    /// One AdamW update of the flat LoRA parameters from flat gradients and moments of the same layout.
    ///
    /// # Errors
    /// If a buffer has another length, or the device fails.
    pub fn update(
        &mut self,
        step: AdamW,
        gradients: &K::Full,
        m: &mut K::Full,
        v: &mut K::Full,
    ) -> Result<()> {
        self.kernels.adamw(step, &mut self.parameters, gradients, m, v)?;
        self.refresh()
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
