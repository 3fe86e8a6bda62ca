//! A first pass at full size.

use tunesmith_data::{Example, Place};
use tunesmith_model::{Batch, DropoutStep};
use tunesmith_ops::Kernels;

use super::Trainer;
use super::batches::batch;
use crate::Error;

/// Rows of the documents that fill a micro-batch of `capacity` tokens, the longest first: `lengths` in descending order,
/// the last one cut.
pub(super) fn fullest(lengths: &[usize], capacity: usize) -> Vec<usize> {
    let mut left = capacity;
    let cut = lengths.iter().map(|&len| {
        let len = len.min(left);
        left -= len;
        len
    });
    cut.take_while(|&len| len > 0).collect()
}

impl<K: Kernels> Trainer<K> {
    /// Runs a forward and a backward pass, and an evaluation, on made-up rows that fill a micro-batch to its last token,
    /// every one of them trained, the longest document first. It changes nothing that a step reads.
    ///
    /// After it, all memory that steps and evaluations take is taken, and a device has chosen how to compute the matrix
    /// products of this size.
    ///
    /// # Errors
    /// If the memory cannot be had, or the device fails.
    pub fn warm_up(&mut self) -> Result<(), Error> {
        self.drain()?;
        let vocab = self.decoder.config().vocab_size.max(1);
        let document = |&rows: &usize| Example {
            // A row more than there are rows: the last token is a target and nothing else.
            ids: (0..=rows).map(|i| (i % vocab) as u32).collect(),
            trained: (0..=rows).map(|i| i > 0).collect(),
            place: Place::line(0),
        };
        let documents: Vec<Example> = self.fullest.iter().map(document).collect();
        let numbers: Vec<usize> = (0..documents.len()).collect();
        let batch = batch(&documents.iter().collect::<Vec<_>>(), &numbers, self.collator.multiple);
        self.decoder.kernels().tune(true);
        let done = self.passes(&batch);
        self.decoder.kernels().tune(false);
        self.is_warm = done.is_ok();
        done
    }

    fn passes(&mut self, batch: &Batch) -> Result<(), Error> {
        if batch.rows.is_empty() {
            return Ok(());
        }
        let dropout = self.dropout(1);
        let weight = 1.0 / batch.rows.len() as f32;
        let (workspace, gradients) = (&mut self.workspace, &mut self.gradients);
        let losses =
            self.decoder.queue_loss_and_gradients(workspace, batch, weight, dropout, gradients, None)?;
        self.decoder.kernels().clear_full(gradients)?;
        let evaluated = self.decoder.queue_losses(workspace, batch)?;
        for later in [losses, evaluated] {
            self.decoder.kernels().wait(later)?;
        }
        Ok(())
    }

    pub(super) fn dropout(&self, step: usize) -> Option<DropoutStep> {
        let (p, seed) = (self.lora_dropout, self.collator.config.seed);
        (p > 0.0).then_some(DropoutStep { p, seed, step: step as u32 })
    }
}

#[cfg(test)]
mod tests {
    use super::fullest;

    #[test]
    fn the_longest_documents_fill_a_micro_batch_exactly() {
        assert_eq!(fullest(&[5, 4, 3], 12), [5, 4, 3]);
        assert_eq!(fullest(&[5, 4, 3], 7), [5, 2]);
        assert_eq!(fullest(&[5, 4, 3], 5), [5]);
        assert_eq!(fullest(&[], 0), [0; 0]);
    }
}
