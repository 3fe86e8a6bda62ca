//! What a run is between two optimizer steps: all that is needed to go on as if it had never stopped.

use serde::{Deserialize, Serialize};

/// Version of [`RunState`]; a later one is refused, not guessed.
pub const STATE_VERSION: u32 = 1;

/// Everything of a run but its tensors, after an optimizer step.
///
/// Row order and dropout masks are pure functions of the seed, the epoch and the step, so their generators have no
/// state of their own. A state is only ever taken between optimizer steps: no half-accumulated gradient exists then.
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
    /// Epoch in progress, from 0.
    pub epoch: usize,
    /// Batches of that epoch that are done.
    pub batch: usize,
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
    /// The best evaluation so far.
    pub best: Option<Best>,
    /// Evaluations since the best one.
    pub evaluations_since_best: usize,
}

/// The best evaluation of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// Optimizer steps done by then.
    pub step: usize,
    /// Token-weighted loss on the held-out rows.
    pub loss: Exact,
    /// Mean loss of each held-out row, in their order.
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
    /// The parameters of `state.best`, unless they are `parameters`.
    pub best_parameters: Option<Vec<f32>>,
}
