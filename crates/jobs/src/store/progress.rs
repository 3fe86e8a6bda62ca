//! How far a job is, folded from its events.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a job's events say, taken together. A step that is done again after a crash counts once.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// What it is doing: `validating`, `loading`, `training`, `evaluating`, `saving`.
    pub phase: Option<String>,
    /// Optimizer steps done.
    pub step: u64,
    /// Optimizer steps planned.
    pub total_steps: u64,
    /// Epochs done, with a fraction.
    pub epoch: f64,
    /// Epochs planned.
    pub epochs: u64,
    /// Training rows.
    pub train_examples: u64,
    /// Held-out rows.
    pub validation_examples: u64,
    /// LoRA parameters.
    pub trainable_parameters: u64,
    /// Tokens of an epoch, prompts included.
    pub tokens_per_epoch: u64,
    /// Tokens of an epoch that count in the loss.
    pub trained_tokens_per_epoch: u64,
    /// Loss of the last step.
    pub train_loss: Option<f64>,
    /// Loss on the held-out rows before the first step.
    pub initial_validation_loss: Option<f64>,
    /// Last loss on the held-out rows.
    pub validation_loss: Option<f64>,
    /// Learning rate of the last step.
    pub learning_rate: Option<f64>,
    /// Seconds a step takes: a moving average.
    pub seconds_per_step: Option<f64>,
    /// Tokens a second: a moving average over steps.
    pub tokens_per_second: Option<f64>,
    /// Seconds of the last evaluation.
    pub evaluation_seconds: Option<f64>,
    /// Warnings so far.
    pub warnings: u64,
    /// The last warning.
    pub last_warning: Option<String>,
    /// Why training stopped, in a sentence, once it has.
    pub stop_reason: Option<String>,
    /// Peak memory of the worker in bytes.
    pub peak_bytes: Option<u64>,
    /// And of its device, where that has memory of its own.
    pub device_peak_bytes: Option<u64>,
}

/// Weight of the newest step in the moving averages.
const NEWEST: f64 = 0.2;

impl Progress {
    /// Takes one event in: its `type` and its `data`. What it does not know it leaves alone.
    pub fn apply(&mut self, kind: &str, data: &Value) {
        let count = |name: &str| data.get(name).and_then(Value::as_u64);
        let number = |name: &str| data.get(name).and_then(Value::as_f64);
        let text = |name: &str| data.get(name).and_then(Value::as_str).map(str::to_owned);
        match kind {
            "phase" => self.phase = text("phase"),
            "plan" => {
                self.total_steps = count("total_steps").unwrap_or(self.total_steps);
                self.epochs = count("epochs").unwrap_or(self.epochs);
                self.train_examples = count("train_examples").unwrap_or_default();
                self.validation_examples = count("validation_examples").unwrap_or_default();
                self.trainable_parameters = count("trainable_parameters").unwrap_or_default();
                self.tokens_per_epoch = count("tokens_per_epoch").unwrap_or_default();
                self.trained_tokens_per_epoch = count("trained_tokens_per_epoch").unwrap_or_default();
            }
            // An attempt goes on from its checkpoint: what was beyond is done again.
            "resumed" => self.step = count("step").unwrap_or_default(),
            "step" => {
                self.step = count("step").unwrap_or(self.step);
                self.total_steps = count("total_steps").unwrap_or(self.total_steps);
                self.epoch = number("epoch").unwrap_or(self.epoch);
                self.train_loss = number("loss");
                self.learning_rate = number("learning_rate");
                if let (Some(seconds), Some(tokens)) = (number("seconds"), number("tokens"))
                    && seconds > 0.0
                {
                    let mean = |old: Option<f64>, new: f64| Some(old.map_or(new, |o| o + NEWEST * (new - o)));
                    self.seconds_per_step = mean(self.seconds_per_step, seconds);
                    self.tokens_per_second = mean(self.tokens_per_second, tokens / seconds);
                }
            }
            "evaluation" => {
                let loss = number("loss");
                if count("step") == Some(0) {
                    self.initial_validation_loss = loss;
                }
                self.validation_loss = loss;
                self.evaluation_seconds = number("seconds");
            }
            "warning" => {
                self.warnings += 1;
                self.last_warning = text("message");
            }
            "stopped" => self.stop_reason = text("reason"),
            "memory" => {
                self.peak_bytes = count("peak_bytes");
                self.device_peak_bytes = count("device_peak_bytes");
            }
            _ => {}
        }
    }

    /// Share of the work that is done, from 0 to 1.
    pub fn fraction(&self) -> f64 {
        if self.total_steps == 0 { 0.0 } else { (self.step as f64 / self.total_steps as f64).min(1.0) }
    }

    /// Seconds of steps that are left, as far as the steps so far tell.
    pub fn eta_seconds(&self) -> Option<f64> {
        let left = self.total_steps.saturating_sub(self.step);
        self.seconds_per_step.map(|seconds| seconds * left as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events_fold_into_where_a_job_is() {
        let mut progress = Progress::default();
        progress.apply("plan", &json!({ "total_steps": 40, "epochs": 2, "train_examples": 80 }));
        progress.apply("evaluation", &json!({ "step": 0, "loss": 3.0, "seconds": 0.5 }));
        for step in 1..=10 {
            let data = json!({ "step": step, "total_steps": 40, "loss": 2.0, "seconds": 0.5, "tokens": 100, "epoch": 0.5 });
            progress.apply("step", &data);
        }
        progress.apply("warning", &json!({ "message": "look" }));
        progress.apply("something new", &json!(null));
        assert_eq!((progress.step, progress.total_steps, progress.epochs), (10, 40, 2));
        assert_eq!((progress.fraction(), progress.eta_seconds()), (0.25, Some(15.0)));
        assert_eq!(progress.tokens_per_second, Some(200.0));
        assert_eq!(progress.initial_validation_loss, Some(3.0));
        assert_eq!(progress.last_warning.as_deref(), Some("look"));
        progress.apply("resumed", &json!({ "step": 8 }));
        assert_eq!(progress.step, 8);
        let back: Progress = serde_json::from_str(&serde_json::to_string(&progress).unwrap()).unwrap();
        assert_eq!(back, progress);
    }
}
