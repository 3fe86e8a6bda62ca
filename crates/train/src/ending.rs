//! How a run ends, and what there is to tell of it then.

use serde::{Deserialize, Serialize};

use crate::{EpochPlan, Exact, RunState};

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Optimizer steps done.
    pub steps: usize,
    /// Steps of the whole run as planned.
    pub total_steps: usize,
    /// Epochs of the whole run as planned.
    pub epochs: usize,
    /// Epochs done, with a fraction.
    pub epochs_done: f64,
    /// The step whose parameters the decoder has now: the last one, or that of the best evaluation.
    pub kept_step: usize,
    /// Whether it was asked to stop before its end.
    pub stopped: bool,
    /// Loss of the last epoch's steps, weighted by their trained tokens.
    pub train_loss: Option<f64>,
    /// Token-weighted loss of the last evaluation up to `kept_step`.
    pub validation_loss: Option<f64>,
    /// Token-weighted loss of the evaluation before the first step.
    pub initial_validation_loss: Option<f64>,
    /// Tokens of all steps.
    pub tokens: usize,
    /// Those that counted in the loss.
    pub trained_tokens: usize,
    /// Seconds spent in steps.
    pub train_seconds: f64,
}

/// Why training ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// All steps are done.
    Done,
    /// The held-out rows gain nothing by more.
    NoImprovement,
}

impl End {
    /// Whether and why a run ends where it stands.
    pub(crate) fn of(state: &RunState, plan: &EpochPlan) -> Option<Self> {
        if state.step == state.total_steps {
            return Some(Self::Done);
        }
        let over = plan.patience.is_some_and(|n| state.is_out_of_patience(n, plan.evaluations_per_epoch));
        over.then_some(Self::NoImprovement)
    }

    /// One sentence for people.
    pub(crate) fn reason(self, state: &RunState, kept_step: usize) -> String {
        let kept = format!("the adapter of step {kept_step} is kept");
        match self {
            Self::NoImprovement => {
                let evaluations = state.evaluations_since_best;
                format!("no improvement in {evaluations} evaluations since step {kept_step}; {kept}")
            }
            Self::Done => {
                let done = match state.epochs {
                    1 => "the epoch is done".to_owned(),
                    epochs => format!("all {epochs} epochs are done"),
                };
                if kept_step == state.step { done } else { format!("{done}; {kept}, the best one") }
            }
        }
    }
}

impl Summary {
    /// What there is to tell of a run as it stands; when it has ended by itself, of the parameters it keeps.
    pub(crate) fn new(state: &RunState, plan: &EpochPlan, epochs_done: f64, stopped: bool) -> Self {
        let number = |x: Option<Exact>| x.map(|x| x.0);
        let best = state.best.as_ref().filter(|_| !stopped && plan.patience.is_some());
        Self {
            steps: state.step,
            total_steps: state.total_steps,
            epochs: state.epochs,
            epochs_done,
            kept_step: best.map_or(state.step, |best| best.step),
            stopped,
            train_loss: number(state.train_loss),
            validation_loss: best.map(|best| best.loss.0).or(number(state.validation_loss)),
            initial_validation_loss: number(state.initial_validation_loss),
            tokens: state.tokens,
            trained_tokens: state.trained_tokens,
            train_seconds: state.train_seconds.0,
        }
    }
}
