//! One optimizer step, and one evaluation.

use tunesmith_data::{Example, Place, pack};
use tunesmith_model::{Batch, Decoder, Document, DropoutStep, Keep, Workspace};
use tunesmith_ops::{AdamW, Kernels};

use crate::{Error, Recompute, RunState, Snapshot, TrainConfig};

/// Tokens of a micro-batch when its size is left to us: enough rows to keep the matrix products busy, few enough to
/// keep the activations small.
const MICRO_BATCH_TOKENS: usize = 2048;

/// What one optimizer step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepOutcome {
    /// Sum of the token losses over the trained tokens of the whole step, divided once by their count.
    pub loss: f64,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Tokens of the step's rows.
    pub tokens: usize,
    /// Those that count in the loss.
    pub trained_tokens: usize,
}

/// The loss of one row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowLoss {
    /// Sum over the row's trained tokens.
    pub sum: f64,
    /// How many there are.
    pub trained_tokens: usize,
}

/// A decoder with what its training needs: gradients, both moments of AdamW, activations.
#[derive(Debug)]
pub struct Trainer<K: Kernels> {
    decoder: Decoder<K>,
    config: TrainConfig,
    lora_dropout: f32,
    gradients: K::Full,
    first_moment: K::Full,
    second_moment: K::Full,
    guard: K::Guard,
    workspace: Workspace<K>,
    /// Most tokens of a micro-batch.
    capacity: usize,
    /// Micro-batches are made this many times smaller.
    divisor: usize,
    steps: u64,
}

impl<K: Kernels> Trainer<K> {
    /// Makes room for the longest micro-batch that `examples` (the training and the validation rows) can give.
    ///
    /// # Errors
    /// As [`Trainer::for_lengths`].
    pub fn new<'a>(
        decoder: Decoder<K>,
        config: &TrainConfig,
        lora_dropout: f32,
        examples: impl IntoIterator<Item = &'a Example>,
    ) -> Result<Self, Error> {
        let lengths = examples.into_iter().map(|e| e.ids.len());
        Self::for_lengths(decoder, config, lora_dropout, lengths)
    }

    /// Makes room for the longest micro-batch that documents of these lengths in tokens can give.
    ///
    /// # Errors
    /// No LoRA parameters, or not enough memory.
    pub fn for_lengths(
        decoder: Decoder<K>,
        config: &TrainConfig,
        lora_dropout: f32,
        lengths: impl IntoIterator<Item = usize>,
    ) -> Result<Self, Error> {
        Self::with_divisor(decoder, config, lora_dropout, lengths, 1)
    }

    /// As [`Trainer::for_lengths`], with micro-batches `divisor` times smaller than the settings say, but never of less
    /// than a row: for a device whose memory has run out. The step's batch stays.
    ///
    /// # Errors
    /// As [`Trainer::for_lengths`].
    pub fn with_divisor(
        mut decoder: Decoder<K>,
        config: &TrainConfig,
        lora_dropout: f32,
        lengths: impl IntoIterator<Item = usize>,
        divisor: usize,
    ) -> Result<Self, Error> {
        if decoder.layout().is_empty() {
            return Err(Error::NoAdapter);
        }
        let mut lengths: Vec<usize> = lengths.into_iter().collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        let longest = lengths.first().copied().unwrap_or(0);
        decoder.prepare_positions(longest);
        let capacity = match micro_batch_rows(config, divisor) {
            Some(rows) => lengths.iter().take(rows).sum(),
            None => {
                longest.max(micro_batch_tokens(divisor).min(lengths.iter().take(config.batch_size).sum()))
            }
        };
        let keep = match config.recompute {
            Recompute::None => Keep::All,
            Recompute::Mlp => Keep::NoMlp,
            Recompute::Min2 => Keep::Residuals,
            Recompute::Min => Keep::Input,
        };
        let keep = vec![keep; decoder.config().num_hidden_layers];
        let workspace = decoder.training_workspace(capacity, &keep, lora_dropout > 0.0)?;
        let (k, n) = (decoder.kernels(), decoder.layout().len());
        let (gradients, first_moment) = (k.zeros_full(n)?, k.zeros_full(n)?);
        let (second_moment, guard) = (k.zeros_full(n)?, k.guard()?);
        Ok(Self {
            config: config.clone(),
            lora_dropout,
            gradients,
            first_moment,
            second_moment,
            guard,
            workspace,
            capacity,
            divisor,
            steps: 0,
            decoder,
        })
    }

    /// The model as it is now.
    pub fn decoder(&self) -> &Decoder<K> {
        &self.decoder
    }

    /// Most tokens that a micro-batch can have.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Gives the model back.
    pub fn into_decoder(self) -> Decoder<K> {
        self.decoder
    }

    /// Loss of these rows and its gradient, left in the flat gradient buffer: everything of a step but the update.
    ///
    /// # Errors
    /// No trained token, a loss that is not finite (with the rows it came from), or a device fault.
    pub fn accumulate(&mut self, examples: &[&Example]) -> Result<StepOutcome, Error> {
        self.accumulate_while(examples, &mut || true)?.ok_or_else(never_stopped)
    }

    /// As [`Trainer::accumulate`]; nothing when `go_on`, which is asked after each micro-batch, says no before the
    /// last one is done.
    fn accumulate_while(
        &mut self,
        examples: &[&Example],
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Option<StepOutcome>, Error> {
        let step = self.steps as usize + 1;
        let trained_tokens: usize = examples.iter().map(|e| e.trained_tokens()).sum();
        if trained_tokens == 0 {
            return Err(Error::NoTrainedTokens { examples: examples.len() });
        }
        let dropout = (self.lora_dropout > 0.0).then_some(DropoutStep {
            p: self.lora_dropout,
            seed: self.config.seed,
            step: step as u32,
        });
        self.decoder.kernels().clear_full(&mut self.gradients)?;
        let weight = 1.0 / trained_tokens as f32;
        let mut sum = 0f64;
        let micro_batches = micro_batches(&self.config, self.divisor, examples)?;
        let last = micro_batches.len().saturating_sub(1);
        for (i, micro) in micro_batches.iter().enumerate() {
            let batch = batch(examples, micro);
            let losses = self.decoder.loss_and_gradients(
                &mut self.workspace,
                &batch,
                weight,
                dropout,
                &mut self.gradients,
            )?;
            let bad = not_finite(&batch, &losses, micro, examples);
            if !bad.is_empty() {
                return Err(Error::LossNotFinite { step, places: bad });
            }
            sum += losses.iter().map(|&l| f64::from(l)).sum::<f64>();
            if !go_on() && i < last {
                return Ok(None);
            }
        }
        let grad_norm = self.decoder.kernels().norm(&self.gradients)?;
        if !grad_norm.is_finite() {
            return Err(Error::GradientNotFinite {
                step,
                places: examples.iter().map(|e| e.place).collect(),
            });
        }
        let tokens = examples.iter().map(|e| e.ids.len()).sum();
        Ok(Some(StepOutcome { loss: sum / trained_tokens as f64, grad_norm, tokens, trained_tokens }))
    }

    /// One optimizer step on these rows: gradient, clipping by the global norm, AdamW.
    ///
    /// # Errors
    /// As [`Trainer::accumulate`]; then nothing is updated.
    pub fn step(&mut self, examples: &[&Example], learning_rate: f64) -> Result<StepOutcome, Error> {
        self.step_while(examples, learning_rate, &mut || true)?.ok_or_else(never_stopped)
    }

    /// As [`Trainer::step`], but `go_on` is asked after each micro-batch: when it says no before the last one is
    /// done, the step is thrown away, parameters and moments are as they were, and the answer is nothing.
    ///
    /// # Errors
    /// As [`Trainer::accumulate`]; then nothing is updated.
    pub fn step_while(
        &mut self,
        examples: &[&Example],
        learning_rate: f64,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Option<StepOutcome>, Error> {
        let Some(outcome) = self.accumulate_while(examples, go_on)? else { return Ok(None) };
        self.steps += 1;
        let limit = self.config.max_grad_norm;
        let max_norm = (limit > 0.0).then_some(limit);
        let step = AdamW {
            lr: learning_rate,
            beta1: self.config.adam_beta1,
            beta2: self.config.adam_beta2,
            eps: self.config.adam_epsilon,
            weight_decay: self.config.weight_decay,
            step: self.steps,
            grad_scale: 1.0,
        };
        let (m, v) = (&mut self.first_moment, &mut self.second_moment);
        let later = self.decoder.update(step, max_norm, &mut self.guard, &self.gradients, m, v)?;
        self.decoder.kernels().wait(later)?;
        Ok(Some(outcome))
    }

    /// The tensors of the run as they are now, copied to the host, beside its `state` and, where they are other ones,
    /// the parameters of its best evaluation. `state` has to be that of the trainer's own step.
    ///
    /// # Errors
    /// If the device fails.
    pub fn snapshot(&self, state: RunState, best_parameters: Option<Vec<f32>>) -> Result<Snapshot, Error> {
        let kernels = self.decoder.kernels();
        Ok(Snapshot {
            state,
            parameters: self.decoder.parameters()?,
            first_moment: kernels.read_full(&self.first_moment)?,
            second_moment: kernels.read_full(&self.second_moment)?,
            best_parameters,
        })
    }

    /// Puts parameters, moments and the count of steps back to what they were when the snapshot was taken.
    ///
    /// # Errors
    /// [`Error::Resume`] when a tensor has another length than the adapter's layout, before anything is changed; or a
    /// device fault.
    pub fn restore(&mut self, snapshot: &Snapshot) -> Result<(), Error> {
        let needed = self.decoder.layout().len();
        let parts = [
            ("LoRA parameters", Some(&snapshot.parameters)),
            ("values of the first moment", Some(&snapshot.first_moment)),
            ("values of the second moment", Some(&snapshot.second_moment)),
            ("LoRA parameters of its best evaluation", snapshot.best_parameters.as_ref()),
        ];
        for (what, values) in parts {
            if let Some(given) = values.map(Vec::len).filter(|given| *given != needed) {
                let why = format!("it has {given} {what}, and this adapter has {needed}; start the run anew");
                return Err(Error::Resume { why });
            }
        }
        self.decoder.set_parameters(&snapshot.parameters)?;
        let kernels = self.decoder.kernels();
        kernels.write_full(&snapshot.first_moment, &mut self.first_moment, 0)?;
        kernels.write_full(&snapshot.second_moment, &mut self.second_moment, 0)?;
        self.steps = snapshot.state.step as u64;
        Ok(())
    }

    /// Replaces the LoRA parameters and nothing else.
    ///
    /// # Errors
    /// If there are not as many as the adapter's layout has, or the device fails.
    pub(crate) fn set_parameters(&mut self, values: &[f32]) -> Result<(), Error> {
        Ok(self.decoder.set_parameters(values)?)
    }

    /// The flat gradient of the last step, on the host.
    ///
    /// # Errors
    /// If the device fails.
    pub fn gradients(&self) -> Result<Vec<f32>, Error> {
        Ok(self.decoder.kernels().read_full(&self.gradients)?)
    }

    /// The loss of each row, without dropout.
    ///
    /// # Errors
    /// A loss that is not finite (with the rows it came from), or a device fault.
    pub fn evaluate(&mut self, examples: &[&Example]) -> Result<Vec<RowLoss>, Error> {
        self.evaluate_while(examples, &mut || true)?.ok_or_else(never_stopped)
    }

    /// As [`Trainer::evaluate`]; nothing when `go_on`, which is asked after each micro-batch, says no before the last
    /// one is done.
    ///
    /// # Errors
    /// As [`Trainer::evaluate`].
    pub fn evaluate_while(
        &mut self,
        examples: &[&Example],
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Vec<RowLoss>>, Error> {
        let mut out = vec![RowLoss { sum: 0.0, trained_tokens: 0 }; examples.len()];
        let micro_batches = micro_batches(&self.config, self.divisor, examples)?;
        let last = micro_batches.len().saturating_sub(1);
        for (i, micro) in micro_batches.iter().enumerate() {
            let batch = batch(examples, micro);
            let losses = self.decoder.losses(&mut self.workspace, &batch)?;
            let bad = not_finite(&batch, &losses, micro, examples);
            if !bad.is_empty() {
                return Err(Error::EvaluationNotFinite { step: self.steps as usize, places: bad });
            }
            for (&loss, &document) in losses.iter().zip(&batch.documents) {
                let row = &mut out[micro[document]];
                row.sum += f64::from(loss);
                row.trained_tokens += 1;
            }
            if !go_on() && i < last {
                return Ok(None);
            }
        }
        Ok(Some(out))
    }
}

/// What cannot happen: work that is never asked to stop says it was stopped.
fn never_stopped() -> Error {
    Error::Observer("work that nobody may stop was stopped".into())
}

/// Rows of a micro-batch, when they are given.
fn micro_batch_rows(config: &TrainConfig, divisor: usize) -> Option<usize> {
    let rows = config.micro_batch_size.min(config.batch_size.max(1)) / divisor.max(1);
    (config.micro_batch_size > 0).then_some(rows.max(1))
}

/// Tokens of a micro-batch, when its rows are not given; a longer row is one by itself.
fn micro_batch_tokens(divisor: usize) -> usize {
    MICRO_BATCH_TOKENS / divisor.max(1)
}

/// Puts rows into micro-batches, each a list of their numbers: so many rows each in their order, or packed into the
/// token budget ([`tunesmith_data::pack`]). Either way the step's loss and gradient are the same sums.
fn micro_batches(
    config: &TrainConfig,
    divisor: usize,
    examples: &[&Example],
) -> Result<Vec<Vec<usize>>, Error> {
    if let Some(rows) = micro_batch_rows(config, divisor) {
        let numbers: Vec<usize> = (0..examples.len()).collect();
        return Ok(numbers.chunks(rows).map(<[usize]>::to_vec).collect());
    }
    let mut out = Vec::new();
    // An evaluation is packed a training batch at a time, so that it fits the same memory.
    for start in (0..examples.len()).step_by(config.batch_size) {
        let end = examples.len().min(start + config.batch_size);
        let lengths: Vec<usize> = examples[start..end].iter().map(|e| e.ids.len()).collect();
        let budget = micro_batch_tokens(divisor).max(lengths.iter().copied().max().unwrap_or(0));
        let packs = pack(&lengths, budget)?;
        out.extend(packs.into_iter().map(|p| p.into_iter().map(|i| start + i).collect::<Vec<_>>()));
    }
    Ok(out)
}

fn batch(examples: &[&Example], rows: &[usize]) -> Batch {
    let documents: Vec<Document<'_>> = rows
        .iter()
        .map(|&i| Document { ids: &examples[i].ids, trained: &examples[i].trained, number: i as u32 })
        .collect();
    Batch::for_training(&documents)
}

/// Places of the rows that a non-finite loss came from.
fn not_finite(batch: &Batch, losses: &[f32], rows: &[usize], examples: &[&Example]) -> Vec<Place> {
    let bad = losses.iter().zip(&batch.documents).filter(|(loss, _)| !loss.is_finite());
    let mut places: Vec<Place> = bad.map(|(_, &d)| examples[rows[d]].place).collect();
    places.dedup();
    places
}

#[cfg(test)]
mod collator;
