//! What a run is between two optimizer steps: all that is needed to go on as if it had never stopped.

use serde::{Deserialize, Serialize};

use crate::Error;

/// Version of [`RunState`]; a later one is refused, not guessed.
pub const STATE_VERSION: u32 = 1;

/// Everything of a run but its tensors, after an optimizer step.
///
/// Row order and dropout masks are pure functions of the seed, the epoch and the step, so their generators have no
/// state of their own. A state is only ever taken between optimizer steps: no half-accumulated gradient exists then.
/// What was evaluated in part when a run stopped is evaluated again, whole, when it goes on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunState {
    /// [`STATE_VERSION`].
    pub version: u32,
    /// Digest of what the run is made of: settings, rows, adapter layout. A run goes on only where it is equal.
    pub fingerprint: String,
    /// Optimizer steps done.
    pub step: usize,
    /// Steps of the whole run as planned.
    pub total_steps: usize,
    /// Epochs of the whole run as planned.
    pub epochs: usize,
    /// Epoch in progress, from 0; after the last batch of an epoch still that one.
    pub epoch: usize,
    /// Batches of that epoch that are done.
    pub batch: usize,
    /// The step after which the last whole evaluation was made.
    pub evaluated_step: Option<usize>,
    /// Whole evaluations so far, the one before the first step not counted.
    pub evaluations: usize,
    /// Sum of the epoch's token losses so far.
    pub epoch_loss: Exact,
    /// Trained tokens of the epoch so far.
    pub epoch_trained_tokens: usize,
    /// Tokens of all steps, prompts included.
    pub tokens: usize,
    /// Those that counted in the loss.
    pub trained_tokens: usize,
    /// Seconds spent in steps.
    pub train_seconds: Exact,
    /// Loss of the steps of the epoch in progress, weighted by their trained tokens.
    pub train_loss: Option<Exact>,
    /// Loss on the held-out rows before the first step.
    pub initial_validation_loss: Option<Exact>,
    /// Last loss on the held-out rows.
    pub validation_loss: Option<Exact>,
    /// The best evaluation so far; the one before the first step is none, as nothing is learnt by then.
    pub best: Option<Best>,
    /// Evaluations since the best one.
    pub evaluations_since_best: usize,
}

impl RunState {
    /// A run of which nothing is done.
    pub fn new(fingerprint: &str, epochs: usize, total_steps: usize) -> Self {
        Self {
            version: STATE_VERSION,
            fingerprint: fingerprint.to_owned(),
            step: 0,
            total_steps,
            epochs,
            epoch: 0,
            batch: 0,
            evaluated_step: None,
            evaluations: 0,
            epoch_loss: Exact(0.0),
            epoch_trained_tokens: 0,
            tokens: 0,
            trained_tokens: 0,
            train_seconds: Exact(0.0),
            train_loss: None,
            initial_validation_loss: None,
            validation_loss: None,
            best: None,
            evaluations_since_best: 0,
        }
    }

    /// Whether a run of this fingerprint and length can go on from here.
    ///
    /// # Errors
    /// [`Error::Resume`] with the first thing that does not fit.
    pub(crate) fn check(&self, fresh: &Self) -> Result<(), Error> {
        let refuse = |why: String| Err(Error::Resume { why });
        if self.version != fresh.version {
            let (found, known) = (self.version, fresh.version);
            return refuse(format!(
                "its format has version {found}, and this program knows version {known}; use the program that wrote it"
            ));
        }
        if self.fingerprint != fresh.fingerprint {
            return refuse(
                "it is of another run (settings, rows or adapter layout differ); start the run anew"
                    .to_owned(),
            );
        }
        if (self.total_steps, self.epochs) != (fresh.total_steps, fresh.epochs) {
            return refuse(format!(
                "it is of a run of {} steps in {} epochs, and this one has {} in {}; start the run anew",
                self.total_steps, self.epochs, fresh.total_steps, fresh.epochs
            ));
        }
        let per_epoch = fresh.total_steps / fresh.epochs.max(1);
        let there = self.epoch < self.epochs && self.batch <= per_epoch;
        if !there || self.epoch * per_epoch + self.batch != self.step {
            return refuse(format!(
                "step {} is not batch {} of epoch {}, as it says; take an earlier checkpoint",
                self.step, self.batch, self.epoch
            ));
        }
        Ok(())
    }
}

/// The best evaluation of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// Optimizer steps done by then.
    pub step: usize,
    /// Token-weighted loss on the held-out rows.
    pub loss: Exact,
    /// Mean loss of each held-out row that has a trained token, in their order.
    pub row_losses: Vec<Exact>,
}

/// A number that comes back from JSON with the very bits it had, written as hexadecimal digits of them.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Exact(pub f64);

impl Serialize for Exact {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{:016x}", self.0.to_bits()))
    }
}

impl<'de> Deserialize<'de> for Exact {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
        u64::from_str_radix(&text, 16)
            .map(|bits| Self(f64::from_bits(bits)))
            .map_err(|_| serde::de::Error::custom(format!("`{text}` is no number in hexadecimal bits")))
    }
}

/// A run at a step, tensors and all, on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// Everything but the tensors.
    pub state: RunState,
    /// The flat LoRA parameters.
    pub parameters: Vec<f32>,
    /// `AdamW`'s first moment, of the same layout.
    pub first_moment: Vec<f32>,
    /// `AdamW`'s second moment, of the same layout.
    pub second_moment: Vec<f32>,
    /// The parameters of `state.best`, where a run keeps its best ones and they are not `parameters`.
    pub best_parameters: Option<Vec<f32>>,
}

impl Snapshot {
    /// The parameters of the best evaluation, if there was one.
    ///
    /// # Errors
    /// [`Error::Resume`] when they are those of an earlier step and not there.
    pub(crate) fn best(&self) -> Result<Option<Vec<f32>>, Error> {
        match (&self.state.best, &self.best_parameters) {
            (None, _) => Ok(None),
            (Some(best), _) if best.step == self.state.step => Ok(Some(self.parameters.clone())),
            (Some(_), Some(parameters)) => Ok(Some(parameters.clone())),
            (Some(best), None) => Err(Error::Resume {
                why: format!(
                    "the adapter of its best evaluation, that of step {}, is missing; take an earlier checkpoint",
                    best.step
                ),
            }),
        }
    }
}
