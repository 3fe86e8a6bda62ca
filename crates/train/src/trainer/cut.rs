//! The room that a trainer has for its micro-batches.

use tunesmith_model::{Batch, Decoder, Document, DropoutStep};
use tunesmith_ops::Kernels;

use super::Trainer;
use crate::plan::MicroBatches;
use crate::{Error, TrainConfig};

impl<K: Kernels> Trainer<K> {
    /// A trainer for rows of up to `longest` tokens, with no room for any yet: [`Trainer::recut`] makes it.
    ///
    /// # Errors
    /// No LoRA parameters, or not enough memory.
    pub(crate) fn bare(
        mut decoder: Decoder<K>,
        config: &TrainConfig,
        lora_dropout: f32,
        longest: usize,
    ) -> Result<Self, Error> {
        if decoder.layout().is_empty() {
            return Err(Error::NoAdapter);
        }
        decoder.prepare_positions(longest);
        let workspace = decoder.training_workspace(0, &[], false)?;
        let (k, n) = (decoder.kernels(), decoder.layout().len());
        let (gradients, first_moment) = (k.zeros_full(n)?, k.zeros_full(n)?);
        let second_moment = k.zeros_full(n)?;
        Ok(Self {
            config: config.clone(),
            lora_dropout,
            gradients,
            first_moment,
            second_moment,
            workspace,
            cut: MicroBatches { rows: None, tokens: 0, capacity: 0, keep: Vec::new() },
            longest,
            steps: 0,
            decoder,
        })
    }

    /// Gives the room for micro-batches back and makes that of others.
    ///
    /// # Errors
    /// If there is not enough memory; then there is no room for any.
    pub(crate) fn recut(&mut self, cut: MicroBatches) -> Result<(), Error> {
        // The old one first: the two need not fit side by side.
        self.cut.capacity = 0;
        self.workspace = self.decoder.training_workspace(0, &[], false)?;
        let dropout = self.lora_dropout > 0.0;
        self.workspace = self.decoder.training_workspace(cut.capacity, &cut.keep, dropout)?;
        self.cut = cut;
        Ok(())
    }

    /// One forward, backward and evaluation of the largest micro-batch, of tokens that mean nothing. Parameters and moments
    /// are left as they are.
    ///
    /// # Errors
    /// If memory runs out or the device fails.
    pub(crate) fn warm_up(&mut self) -> Result<(), Error> {
        let capacity = self.cut.capacity;
        let row = self.longest.min(capacity).max(1);
        let lengths = (0..capacity).step_by(row).map(|at| row.min(capacity - at));
        let ids = vec![0; row];
        // The first token of a row is never trained; a row of one token trains nothing.
        let trained: Vec<bool> = (0..row).map(|t| t > 0).collect();
        let documents: Vec<Document<'_>> = lengths
            .enumerate()
            .map(|(i, n)| Document { ids: &ids[..n], trained: &trained[..n], number: i as u32 })
            .collect();
        let batch = Batch::for_training(&documents);
        let dropout = (self.lora_dropout > 0.0).then_some(DropoutStep {
            p: self.lora_dropout,
            seed: self.config.seed,
            step: 0,
        });
        self.decoder.loss_and_gradients(&mut self.workspace, &batch, 1.0, dropout, &mut self.gradients)?;
        self.decoder.losses(&mut self.workspace, &batch)?;
        Ok(self.decoder.kernels().clear_full(&mut self.gradients)?)
    }
}
