//! One optimizer step, and one evaluation.

mod batches;
mod cut;
mod pending;
mod warm_up;

use std::collections::VecDeque;
use std::time::Instant;

use tunesmith_data::Example;
use tunesmith_model::{Decoder, Workspace};
use tunesmith_ops::{AdamW, Kernels};

pub(crate) use batches::Collator;
pub use batches::PreparedStep;
use batches::{MicroBatch, Origin};
use pending::{Pending, Update};

use crate::plan::{Lengths, MicroBatches};
use crate::{Error, RunState, Snapshot, TrainConfig};

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
///
/// Work is queued on the device, and its results are read late: while one micro-batch is under way the next is queued. On
/// the CPU everything is done when a call returns. [`Trainer::step`] and [`Trainer::evaluate`] wait for what they give;
/// [`Trainer::queue`] does not.
#[derive(Debug)]
pub struct Trainer<K: Kernels> {
    decoder: Decoder<K>,
    collator: Collator,
    lora_dropout: f32,
    gradients: K::Full,
    first_moment: K::Full,
    second_moment: K::Full,
    guard: K::Guard,
    workspace: Workspace<K>,
    /// Rows of the documents that fill one.
    fullest: Vec<usize>,
    is_warm: bool,
    /// Steps whose update is queued.
    steps: u64,
    pending: Pending<K::Later>,
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
        let lengths: Lengths = lengths.into_iter().collect();
        let cut = MicroBatches::usual(config, &lengths, decoder.config().num_hidden_layers, 1);
        let mut trainer = Self::bare(decoder, config, lora_dropout, &lengths)?;
        trainer.recut(cut, &lengths)?;
        Ok(trainer)
    }

    /// The model as it is now.
    pub fn decoder(&self) -> &Decoder<K> {
        &self.decoder
    }

    /// Most tokens that a micro-batch can have.
    pub fn capacity(&self) -> usize {
        self.collator.cut.capacity
    }

    /// Gives the model back.
    pub fn into_decoder(self) -> Decoder<K> {
        self.decoder
    }

    /// How rows become the steps that [`Trainer::queue`] takes.
    pub(crate) fn collator(&self) -> &Collator {
        &self.collator
    }

    /// Whether a warm-up would do any good: work is queued, and none was made yet.
    pub(crate) fn is_cold(&self) -> bool {
        self.ahead() > 0 && !self.is_warm
    }

    fn ahead(&self) -> usize {
        self.decoder.kernels().ahead()
    }

    /// Loss of these rows and its gradient, left in the flat gradient buffer: everything of a step but the update.
    ///
    /// # Errors
    /// No trained token, a loss that is not finite (with the rows it came from), or a device fault.
    pub fn accumulate(&mut self, examples: &[&Example]) -> Result<StepOutcome, Error> {
        self.drain()?;
        let mut prepared = self.prepare(examples)?;
        let norm = self.gradients_of(&mut prepared);
        if norm.is_err() {
            self.abandon()?;
        }
        let grad_norm = norm?;
        let loss = self.pending.take_sum() / prepared.trained_tokens as f64;
        if !grad_norm.is_finite() {
            let step = self.steps as usize + 1;
            return Err(Error::GradientNotFinite { step, places: prepared.places });
        }
        let PreparedStep { tokens, trained_tokens, .. } = prepared;
        Ok(StepOutcome { loss, grad_norm, tokens, trained_tokens })
    }

    /// The norm of the gradient, after all losses were read.
    fn gradients_of(&mut self, prepared: &mut PreparedStep) -> Result<f64, Error> {
        self.queue_gradients(prepared, &mut || true)?;
        self.read(0)?;
        Ok(self.decoder.kernels().norm(&self.gradients)?)
    }

    /// The micro-batches of a step on these rows, for [`Trainer::queue`].
    ///
    /// # Errors
    /// No trained token.
    pub fn prepare(&self, examples: &[&Example]) -> Result<PreparedStep, Error> {
        self.collator.step(examples)
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
        self.drain()?;
        let prepared = self.prepare(examples)?;
        if !self.queue(prepared, learning_rate, go_on)? {
            return Ok(None);
        }
        self.drain()?;
        Ok(self.outcomes().pop())
    }

    /// Queues one optimizer step, behind those that are queued already, and returns while the device may still be busy
    /// with it; what came of earlier ones is in [`Trainer::outcomes`]. No more than one micro-batch is queued beside the
    /// one that is under way.
    ///
    /// `go_on` is asked after each micro-batch: when it says no before the last one is queued, the step is thrown away
    /// and the answer is false. Then, and after an error, all earlier steps are done and their outcomes are there.
    ///
    /// # Errors
    /// What went wrong with this step or, as an outcome comes late, with an earlier one: the error says which. That step
    /// and all after it have changed nothing, neither parameters nor moments.
    pub fn queue(
        &mut self,
        mut prepared: PreparedStep,
        learning_rate: f64,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<bool, Error> {
        let whole = self.queue_gradients(&mut prepared, go_on);
        if !matches!(whole, Ok(true)) {
            return self.abandoned(whole);
        }
        let config = &self.collator.config;
        let step = AdamW {
            lr: learning_rate,
            beta1: config.adam_beta1,
            beta2: config.adam_beta2,
            eps: config.adam_epsilon,
            weight_decay: config.weight_decay,
            step: self.steps + 1,
            grad_scale: 1.0,
        };
        let max_norm = (config.max_grad_norm > 0.0).then_some(config.max_grad_norm);
        let (m, v) = (&mut self.first_moment, &mut self.second_moment);
        let later = match self.decoder.update(step, max_norm, &mut self.guard, &self.gradients, m, v) {
            Ok(later) => later,
            Err(error) => return self.abandoned(Err(error.into())),
        };
        self.steps += 1;
        let PreparedStep { places, tokens, trained_tokens, .. } = prepared;
        self.pending.push_update(self.steps as usize, later, Update { places, tokens, trained_tokens });
        self.read(self.ahead())?;
        Ok(true)
    }

    /// What came of queued steps, in their order, each once.
    pub fn outcomes(&mut self) -> Vec<StepOutcome> {
        self.timed_outcomes().into_iter().map(|(outcome, _)| outcome).collect()
    }

    /// [`Trainer::outcomes`], each with the time at which it was known.
    pub(crate) fn timed_outcomes(&mut self) -> Vec<(StepOutcome, Instant)> {
        self.pending.take_outcomes()
    }

    /// Whether a step is queued whose outcome is not known yet.
    pub fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Waits for the outcomes of all queued steps.
    ///
    /// # Errors
    /// As [`Trainer::queue`].
    pub fn drain(&mut self) -> Result<(), Error> {
        self.read(0)
    }

    /// Queues the micro-batches of a step; whether to the last.
    fn queue_gradients(
        &mut self,
        prepared: &mut PreparedStep,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<bool, Error> {
        let step = self.steps as usize + 1;
        let dropout = self.dropout(step);
        self.decoder.kernels().clear_full(&mut self.gradients)?;
        let weight = 1.0 / prepared.trained_tokens as f32;
        let last = prepared.micro_batches.len().saturating_sub(1);
        for (i, micro) in prepared.micro_batches.drain(..).enumerate() {
            let losses = self.decoder.queue_loss_and_gradients(
                &mut self.workspace,
                &micro.batch,
                weight,
                dropout,
                &mut self.gradients,
                Some(&mut self.guard),
            )?;
            self.pending.push_losses(step, losses, micro.into());
            self.read(self.ahead())?;
            if !go_on() && i < last {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Throws a step away that is half queued, once the steps before it are done.
    fn abandon(&mut self) -> Result<(), Error> {
        self.pending.forget_step(self.steps as usize + 1);
        self.drain()?;
        // What was read of the step itself.
        self.pending.take_sum();
        // Its losses may have tripped the guard.
        Ok(self.decoder.kernels().clear_guard(&mut self.guard)?)
    }

    /// What a step ends with that was not queued to its end: an earlier step that failed comes first, and of two faults of a
    /// device the one that was met first.
    fn abandoned<T>(&mut self, ended: Result<T, Error>) -> Result<T, Error> {
        match (ended, self.abandon()) {
            (Err(error), Err(earlier)) => Err(if earlier.bad_step().is_some() { earlier } else { error }),
            (ended, abandoned) => abandoned.and(ended),
        }
    }

    /// Reads results until those of no more than `ahead` micro-batches are left. After an error nothing is left, and the
    /// trainer stands before the step that it names.
    fn read(&mut self, ahead: usize) -> Result<(), Error> {
        let read = self.pending.read(self.decoder.kernels(), ahead);
        if let Err(error) = &read {
            self.pending.clear();
            if let Some(step) = error.bad_step() {
                self.steps = step as u64 - 1;
            }
            // No update behind the bad step took place. If even this fails, so does all that follows, and the error at
            // hand is the one to tell.
            let _ = self.decoder.kernels().clear_guard(&mut self.guard);
        }
        read
    }

    /// The tensors of the run as they are now, copied to the host, beside its `state` and, where they are other ones,
    /// the parameters of its best evaluation. `state` has to be that of the trainer's own step.
    ///
    /// # Errors
    /// If the device fails.
    pub fn snapshot(
        &mut self,
        state: RunState,
        best_parameters: Option<Vec<f32>>,
    ) -> Result<Snapshot, Error> {
        self.drain()?;
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
        self.drain()?;
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
    pub fn gradients(&mut self) -> Result<Vec<f32>, Error> {
        self.drain()?;
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
        self.drain()?;
        let mut out = vec![RowLoss { sum: 0.0, trained_tokens: 0 }; examples.len()];
        let cut = self.collator.cut(examples)?;
        let (ahead, last) = (self.ahead(), cut.len().saturating_sub(1));
        let mut queued = VecDeque::new();
        for (i, rows) in cut.into_iter().enumerate() {
            let micro = self.collator.micro_batch(examples, rows)?;
            let later = self.decoder.queue_losses(&mut self.workspace, &micro.batch)?;
            queued.push_back((later, micro));
            if queued.len() > ahead {
                self.read_evaluation(queued.pop_front(), &mut out)?;
            }
            if !go_on() && i < last {
                return Ok(None);
            }
        }
        while !queued.is_empty() {
            self.read_evaluation(queued.pop_front(), &mut out)?;
        }
        Ok(Some(out))
    }

    /// Waits for the losses of a micro-batch of an evaluation, and adds them to those of their rows.
    fn read_evaluation(
        &self,
        queued: Option<(K::Later, MicroBatch)>,
        out: &mut [RowLoss],
    ) -> Result<(), Error> {
        let Some((later, micro)) = queued else { return Ok(()) };
        let losses = self.decoder.kernels().wait(later)?;
        for (&loss, &document) in losses.iter().zip(&micro.batch.documents) {
            let row = &mut out[micro.rows[document]];
            row.sum += loss;
            row.trained_tokens += 1;
        }
        let places = Origin::from(micro).not_finite(&losses);
        if places.is_empty() {
            return Ok(());
        }
        Err(Error::EvaluationNotFinite { step: self.steps as usize, places })
    }
}

/// What cannot happen: work that is never asked to stop says it was stopped.
fn never_stopped() -> Error {
    Error::Observer("work that nobody may stop was stopped".into())
}

#[cfg(test)]
mod collator;
