//! From rows to micro-batches.

use tunesmith_data::{Example, Place, pack};
use tunesmith_model::{Batch, Document};

use crate::plan::MicroBatches;
use crate::{Error, TrainConfig};

/// How rows become micro-batches: all that it takes, so that another thread can do it.
#[derive(Debug, Clone)]
pub(crate) struct Collator {
    pub(super) config: TrainConfig,
    /// How steps are put into micro-batches.
    pub(super) cut: MicroBatches,
    /// Rows of a micro-batch are filled up to a multiple of this.
    pub(super) multiple: usize,
    pub(super) dropout: bool,
}

/// The rows of a step, ready to be queued.
#[derive(Debug)]
pub struct PreparedStep {
    pub(super) micro_batches: Vec<MicroBatch>,
    /// Of all its rows.
    pub(super) places: Vec<Place>,
    pub(super) tokens: usize,
    pub(super) trained_tokens: usize,
}

/// Some of a step's rows.
#[derive(Debug)]
pub(super) struct MicroBatch {
    pub(super) batch: Batch,
    /// Numbers of its rows in the step.
    pub(super) rows: Vec<usize>,
    /// Where they stand in the data.
    places: Vec<Place>,
}

/// Where losses come from.
#[derive(Debug)]
pub(super) struct Origin {
    /// For each loss, which of the places it belongs to.
    documents: Vec<usize>,
    places: Vec<Place>,
}

impl Origin {
    /// Places of the rows that a loss which is not finite came from.
    pub(super) fn not_finite(&self, losses: &[f64]) -> Vec<Place> {
        let bad = losses.iter().zip(&self.documents).filter(|(loss, _)| !loss.is_finite());
        let mut places: Vec<Place> = bad.map(|(_, &d)| self.places[d]).collect();
        places.dedup();
        places
    }
}

impl From<MicroBatch> for Origin {
    fn from(micro: MicroBatch) -> Self {
        Self { documents: micro.batch.documents, places: micro.places }
    }
}

impl PreparedStep {
    /// Where its rows stand in the data.
    #[cfg(test)]
    pub(crate) fn places(&self) -> &[Place] {
        &self.places
    }
}

impl Collator {
    /// For micro-batches cut in this way, filled up to a multiple of `multiple` rows.
    pub(crate) fn new(config: &TrainConfig, cut: MicroBatches, multiple: usize, dropout: bool) -> Self {
        Self { config: config.clone(), cut, multiple, dropout }
    }

    /// The micro-batches of a step.
    ///
    /// # Errors
    /// No trained token, or a row too long to pack.
    pub(crate) fn step(&self, examples: &[&Example]) -> Result<PreparedStep, Error> {
        let trained_tokens: usize = examples.iter().map(|e| e.trained_tokens()).sum();
        if trained_tokens == 0 {
            return Err(Error::NoTrainedTokens { examples: examples.len() });
        }
        let micro_batches = self.cut(examples)?;
        let micro_batches = micro_batches.into_iter().map(|rows| self.micro_batch(examples, rows));
        Ok(PreparedStep {
            micro_batches: micro_batches.collect::<Result<_, _>>()?,
            places: examples.iter().map(|e| e.place).collect(),
            tokens: examples.iter().map(|e| e.ids.len()).sum(),
            trained_tokens,
        })
    }

    /// The numbers of the rows of each micro-batch.
    pub(super) fn cut(&self, examples: &[&Example]) -> Result<Vec<Vec<usize>>, Error> {
        micro_batches(&self.config, &self.cut, examples)
    }

    pub(super) fn micro_batch(&self, examples: &[&Example], rows: Vec<usize>) -> Result<MicroBatch, Error> {
        let batch = batch(examples, &rows, self.multiple);
        batch.prepare(self.dropout)?;
        let places = rows.iter().map(|&row| examples[row].place).collect();
        Ok(MicroBatch { batch, rows, places })
    }
}

/// Puts rows into micro-batches, each a list of their numbers: so many rows each in their order, or packed into the
/// token budget ([`tunesmith_data::pack`]). Either way the step's loss and gradient are the same sums.
pub(super) fn micro_batches(
    config: &TrainConfig,
    cut: &MicroBatches,
    examples: &[&Example],
) -> Result<Vec<Vec<usize>>, Error> {
    if let Some(rows) = cut.rows {
        let numbers: Vec<usize> = (0..examples.len()).collect();
        return Ok(numbers.chunks(rows).map(<[usize]>::to_vec).collect());
    }
    let mut out = Vec::new();
    // An evaluation is packed a training batch at a time, so that it fits the same memory.
    for start in (0..examples.len()).step_by(config.batch_size) {
        let end = examples.len().min(start + config.batch_size);
        let lengths: Vec<usize> = examples[start..end].iter().map(|e| e.ids.len()).collect();
        let budget = cut.tokens.max(lengths.iter().copied().max().unwrap_or(0));
        let packs = pack(&lengths, budget)?;
        out.extend(packs.into_iter().map(|p| p.into_iter().map(|i| start + i).collect::<Vec<_>>()));
    }
    Ok(out)
}

/// These rows as one batch, filled up to a multiple of `multiple` rows.
pub(super) fn batch(examples: &[&Example], rows: &[usize], multiple: usize) -> Batch {
    let documents: Vec<Document<'_>> = rows
        .iter()
        .map(|&i| Document { ids: &examples[i].ids, trained: &examples[i].trained, number: i as u32 })
        .collect();
    Batch::filled_up(&documents, multiple)
}
