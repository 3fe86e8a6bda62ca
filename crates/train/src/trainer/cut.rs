//! The room that a trainer has for its micro-batches.

use tunesmith_model::Decoder;
use tunesmith_ops::Kernels;

use super::pending::Pending;
use super::warm_up::fullest;
use super::{Collator, Trainer};
use crate::plan::{Lengths, MicroBatches};
use crate::{Error, TrainConfig};

impl<K: Kernels> Trainer<K> {
    /// A trainer for rows of these lengths, with no room for any yet: [`Trainer::recut`] makes it.
    ///
    /// # Errors
    /// No LoRA parameters, or not enough memory.
    pub(crate) fn bare(
        mut decoder: Decoder<K>,
        config: &TrainConfig,
        lora_dropout: f32,
        lengths: &Lengths,
    ) -> Result<Self, Error> {
        if decoder.layout().is_empty() {
            return Err(Error::NoAdapter);
        }
        let multiple = decoder.kernels().row_padding();
        // What fills a batch up has positions too.
        decoder.prepare_positions(lengths.longest().max(multiple));
        let workspace = decoder.training_workspace(0, &[], false)?;
        let (k, n) = (decoder.kernels(), decoder.layout().len());
        let (gradients, first_moment) = (k.zeros_full(n)?, k.zeros_full(n)?);
        let (second_moment, guard) = (k.zeros_full(n)?, k.guard()?);
        let (cut, dropout) = (MicroBatches::none(), lora_dropout > 0.0);
        Ok(Self {
            collator: Collator::new(config, cut, multiple, dropout),
            lora_dropout,
            gradients,
            first_moment,
            second_moment,
            guard,
            workspace,
            fullest: Vec::new(),
            is_warm: false,
            steps: 0,
            pending: Pending::default(),
            decoder,
        })
    }

    /// Gives the room for micro-batches back and makes that of others, for rows of these lengths.
    ///
    /// # Errors
    /// If there is not enough memory; then there is no room for any. A device fault in what was queued before.
    pub(crate) fn recut(&mut self, cut: MicroBatches, lengths: &Lengths) -> Result<(), Error> {
        self.drain()?;
        self.is_warm = false;
        let for_cut = |error| Error::from(error).with_micro_batch(cut.capacity);
        // The old one first: the two need not fit side by side.
        self.collator.cut = MicroBatches::none();
        self.workspace = self.decoder.training_workspace(0, &[], false).map_err(for_cut)?;
        let rows = cut.capacity.next_multiple_of(self.collator.multiple);
        self.workspace =
            self.decoder.training_workspace(rows, &cut.keep, self.collator.dropout).map_err(for_cut)?;
        self.fullest = fullest(lengths.longest_first(), cut.capacity);
        self.collator.cut = cut;
        Ok(())
    }
}
