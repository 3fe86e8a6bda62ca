//! What a job takes, in numbers: the same arithmetic before the run, from the data, and after it, from what was done.

use serde::{Deserialize, Serialize};

/// Tokens, steps and price of a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Costs {
    /// Tokens that go through the model in training: those of the training rows, times the epochs.
    pub tokens: usize,
    /// Those of them that count in the loss.
    pub trained_tokens: usize,
    /// Passes over the training rows.
    pub epochs: usize,
    /// Optimizer steps.
    pub steps: usize,
    /// What a million training tokens cost, if that was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price_per_million: Option<f64>,
    /// What `tokens` cost at that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<f64>,
}

/// The training rows of a job and how often it visits them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Training rows.
    pub rows: usize,
    /// Their tokens.
    pub tokens: usize,
    /// Those of them that count in the loss.
    pub trained_tokens: usize,
    /// Rows of a step.
    pub batch_size: usize,
    /// Passes over the rows.
    pub epochs: usize,
    /// Validation rows.
    pub validation_rows: usize,
    /// Their tokens.
    pub validation_tokens: usize,
    /// Evaluations in each epoch.
    pub evals_per_epoch: usize,
}

impl Costs {
    /// What was done: tokens, trained tokens and steps as a run counts them.
    pub fn counted(tokens: usize, trained_tokens: usize, epochs: usize, steps: usize) -> Self {
        Self { tokens, trained_tokens, epochs, steps, price_per_million: None, price: None }
    }

    /// What is to be done.
    pub fn planned(plan: &Plan) -> Self {
        let epochs = plan.epochs;
        Self::counted(plan.tokens * epochs, plan.trained_tokens * epochs, epochs, plan.steps())
    }

    /// With the price of all training tokens.
    #[must_use]
    pub fn priced(self, per_million: Option<f64>) -> Self {
        let price = per_million.map(|per_million| price(self.tokens, per_million));
        Self { price_per_million: per_million, price, ..self }
    }
}

/// The price of so many training tokens.
pub fn price(tokens: usize, per_million: f64) -> f64 {
    per_million * tokens as f64 / 1e6
}

impl Plan {
    /// Optimizer steps: the last batch of an epoch may be smaller.
    pub fn steps(&self) -> usize {
        self.rows.div_ceil(self.batch_size.max(1)) * self.epochs
    }

    /// Evaluations of the whole run, the one before the first step among them.
    pub fn evaluations(&self) -> usize {
        let per_epoch = self.evals_per_epoch.min(self.rows.div_ceil(self.batch_size.max(1)));
        if per_epoch == 0 || self.validation_rows == 0 { 0 } else { 1 + per_epoch * self.epochs }
    }
}

/// What a few real steps took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Steps taken, after one to warm up.
    pub steps: usize,
    /// Their tokens.
    pub tokens: usize,
    /// Their time.
    pub seconds: f64,
    /// Tokens of validation rows evaluated.
    pub evaluated_tokens: usize,
    /// The time of that.
    pub evaluation_seconds: f64,
    /// Time of reading the model.
    pub load_seconds: f64,
    /// Energy while the steps were taken, of all that could be counted.
    pub joules: Option<f64>,
    /// Whose that is: `cpu` (its packages), `gpu` (the whole card).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub joules_of: Vec<String>,
    /// Why the energy or a part of it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joules_unknown: Option<String>,
    /// Most memory that the process took on the host, in bytes.
    pub peak_bytes: Option<u64>,
    /// And on the device, where that has memory of its own.
    #[serde(default)]
    pub device_peak_bytes: Option<u64>,
}

/// How long a run will take, and how much energy, if it goes on as measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// All of it.
    pub seconds: f64,
    /// Steps alone.
    pub train_seconds: f64,
    /// Evaluations alone.
    pub evaluation_seconds: f64,
    /// Energy of steps and evaluations.
    pub joules: Option<f64>,
}

impl Estimate {
    /// Time and energy by tokens.
    pub fn new(plan: &Plan, measured: &Measured) -> Self {
        let per = |seconds: f64, tokens: usize| if tokens == 0 { 0.0 } else { seconds / tokens as f64 };
        let all = (plan.tokens * plan.epochs) as f64;
        let train_seconds = per(measured.seconds, measured.tokens) * all;
        let evaluated = (plan.validation_tokens * plan.evaluations()) as f64;
        let evaluation_seconds = per(measured.evaluation_seconds, measured.evaluated_tokens) * evaluated;
        let watts = measured.joules.filter(|_| measured.seconds > 0.0).map(|j| j / measured.seconds);
        Self {
            seconds: measured.load_seconds + train_seconds + evaluation_seconds,
            train_seconds,
            evaluation_seconds,
            joules: watts.map(|watts| watts * (train_seconds + evaluation_seconds)),
        }
    }
}

/// What a job leaves on the disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The adapter's weights, in f32.
    pub adapter_bytes: u64,
    /// The frozen copy of the rows, with its manifest.
    pub data_bytes: u64,
}

/// Everything that can be said of a job before it runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Quote {
    /// Rows and how often they are visited.
    pub plan: Plan,
    /// Tokens, steps, price.
    pub costs: Costs,
    /// Trainable parameters of the adapter.
    pub parameters: usize,
    /// Where the number of epochs comes from, in a sentence; tokens, time and price are those of all of them.
    pub epochs_rule: String,
    /// What stays on the disk.
    pub disk: Disk,
    /// What a few steps took; nothing when none were taken.
    pub measured: Option<Measured>,
    /// What follows from that for the whole run.
    pub estimate: Option<Estimate>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: Plan = Plan {
        rows: 21,
        tokens: 1000,
        trained_tokens: 300,
        batch_size: 4,
        epochs: 3,
        validation_rows: 5,
        validation_tokens: 200,
        evals_per_epoch: 2,
    };

    #[test]
    fn costs_are_tokens_times_epochs() {
        let costs = Costs::planned(&PLAN).priced(Some(0.5));
        assert_eq!((costs.tokens, costs.trained_tokens, costs.steps), (3000, 900, 18));
        assert_eq!(costs.price, Some(0.0015));
        assert_eq!(Costs::planned(&PLAN), Costs::counted(3000, 900, 3, 18));
        assert_eq!(Costs::planned(&PLAN).price, None);
    }

    #[test]
    fn evaluations_are_counted_as_the_run_makes_them() {
        assert_eq!(PLAN.evaluations(), 7);
        assert_eq!(Plan { evals_per_epoch: 0, ..PLAN }.evaluations(), 0);
        assert_eq!(Plan { validation_rows: 0, ..PLAN }.evaluations(), 0);
        assert_eq!(Plan { evals_per_epoch: 99, ..PLAN }.evaluations(), 19, "no more than there are steps");
    }

    #[test]
    fn time_and_energy_go_by_tokens() {
        let measured = Measured {
            steps: 2,
            tokens: 500,
            seconds: 2.0,
            evaluated_tokens: 100,
            evaluation_seconds: 0.1,
            load_seconds: 0.5,
            joules: Some(60.0),
            joules_of: vec!["cpu".to_owned()],
            joules_unknown: None,
            peak_bytes: None,
            device_peak_bytes: None,
        };
        let estimate = Estimate::new(&PLAN, &measured);
        assert!((estimate.train_seconds - 12.0).abs() < 1e-9);
        assert!((estimate.evaluation_seconds - 1.4).abs() < 1e-9);
        assert!((estimate.seconds - 13.9).abs() < 1e-9);
        assert!((estimate.joules.unwrap_or_default() - 30.0 * 13.4).abs() < 1e-9);
        let none = Measured { tokens: 0, seconds: 0.0, joules: None, ..measured };
        assert_eq!(Estimate::new(&PLAN, &none).train_seconds, 0.0);
        assert_eq!(Estimate::new(&PLAN, &none).joules, None);
    }
}
