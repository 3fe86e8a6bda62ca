//! What a run says while it goes: one event a line in `events.jsonl`.

use serde::{Deserialize, Serialize};

/// The `type` and `data` of one line of `events.jsonl`; the writer adds `seq` and `time`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data", rename_all = "snake_case")]
pub enum Event {
    /// The run goes on from a snapshot: what an earlier attempt said of later steps is done again. The first event
    /// then; the plan follows once more.
    Resumed {
        /// Optimizer steps done by then.
        step: usize,
    },
    /// The run is laid out; nothing is computed yet.
    Plan {
        /// Rows trained on.
        train_examples: usize,
        /// Rows held out.
        validation_examples: usize,
        /// Optimizer steps of the whole run.
        total_steps: usize,
        /// Passes over the rows, at most.
        epochs: usize,
        /// Where that number comes from: inputs and rule, in a sentence.
        epochs_rule: String,
        /// LoRA parameters.
        trainable_parameters: usize,
        /// Tokens of one epoch, prompts included.
        tokens_per_epoch: usize,
        /// Tokens of one epoch that count in the loss.
        trained_tokens_per_epoch: usize,
    },
    /// One optimizer step is done.
    Step {
        /// From 1.
        step: usize,
        /// Of this many.
        total_steps: usize,
        /// Epochs done, with its fraction.
        epoch: f64,
        /// Sum of token losses over the step's trained tokens, divided by their count.
        loss: f64,
        /// The rate this step used.
        learning_rate: f64,
        /// Global gradient norm before clipping.
        grad_norm: f64,
        /// Tokens of the step, prompts included.
        tokens: usize,
        /// Tokens of the step that count in the loss.
        trained_tokens: usize,
        /// Wall time of the step in seconds: since it was begun or, where a device is never idle between steps, since the
        /// outcome of the one before.
        seconds: f64,
    },
    /// The loss on the held-out rows.
    Evaluation {
        /// Steps done so far.
        step: usize,
        /// Epochs done, with its fraction.
        epoch: f64,
        /// Token-weighted mean loss.
        loss: f64,
        /// Tokens it is the mean of.
        trained_tokens: usize,
        /// Wall time in seconds.
        seconds: f64,
    },
    /// Training has ended by itself; a run that was asked to stop does not say this, for it may go on.
    Stopped {
        /// Why, in one sentence.
        reason: String,
        /// Optimizer steps done.
        step: usize,
        /// The step of the best evaluation, if there was one.
        best_step: Option<usize>,
    },
    /// Something that does not stop the run and that nobody should miss.
    Warning {
        /// One sentence.
        message: String,
    },
}
