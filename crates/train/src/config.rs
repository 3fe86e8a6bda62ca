//! What a run is told: every key of the `[train]` table of a job file.

use serde::{Deserialize, Serialize};

use crate::plan::Bytes;
use crate::{Epochs, Error, MAX_EPOCHS};

/// Shape of the learning rate after warm-up (names of transformers' `lr_scheduler_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrScheduler {
    /// Half a cosine from the peak to zero.
    Cosine,
    /// A straight line from the peak to zero.
    Linear,
    /// The peak, to the end.
    Constant,
}

/// What each layer keeps between its forward and its backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recompute {
    /// For each layer what fits the memory; on the CPU as `none`, where nothing bounds it.
    Auto,
    /// Keep everything; nothing is computed twice.
    None,
    /// Drop the gate and up projections.
    Mlp,
    /// Keep the two residual inputs of the layer.
    Min2,
    /// Keep the layer's input only.
    Min,
}

/// Hyper-parameters of one fine-tuning run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Passes over the training rows, 1 to 10, or `auto`.
    pub epochs: Epochs,
    /// Most passes that `auto` may take, 1 to 10; a number given in `epochs` it does not bound.
    pub max_epochs: usize,
    /// Examples per optimizer step.
    pub batch_size: usize,
    /// Examples per forward and backward; 0 leaves it to the engine (as many as fit 2,048 tokens on the CPU, and on a
    /// device as many as its memory is good for). The result does not depend on it.
    pub micro_batch_size: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Shape of the learning rate after warm-up.
    pub lr_scheduler_type: LrScheduler,
    /// Share of all steps spent warming up, rounded up; ignored when `warmup_steps` is set.
    pub warmup_ratio: f64,
    /// Steps spent warming up, when given.
    pub warmup_steps: Option<usize>,
    /// Decoupled weight decay on A and B.
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub adam_beta1: f64,
    /// Decay of the second moment.
    pub adam_beta2: f64,
    /// Added to the root of the second moment.
    pub adam_epsilon: f64,
    /// Global gradient norm above which gradients are scaled down; 0 turns clipping off.
    pub max_grad_norm: f64,
    /// Seed of everything random: initial A, dropout, row order.
    pub seed: u64,
    /// Evaluations per epoch on the validation rows; 0 turns evaluation off, and with it the early end of `auto`,
    /// which evaluates at least twice an epoch where 20 rows or more are held out.
    pub evals_per_epoch: usize,
    /// What each layer keeps for the backward pass.
    pub recompute: Recompute,
    /// Most bytes that the run may take on its device, of what is free there; on the CPU, what model, adapter and
    /// activations may take. The result does not depend on it but for the order of sums.
    pub memory_limit: Option<Bytes>,
    /// Steps between two checkpoints; 0 leaves it to `save_minutes`.
    pub save_steps: usize,
    /// Minutes between two checkpoints; 0 leaves it to `save_steps`.
    pub save_minutes: f64,
    /// Checkpoints kept beside the best one, the last one and those at the ends of epochs.
    pub save_total_limit: usize,
    /// Most that all checkpoints of a run may take on the disk, in GiB.
    pub save_disk_gib: f64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            epochs: Epochs::Auto,
            max_epochs: MAX_EPOCHS,
            batch_size: 8,
            micro_batch_size: 0,
            learning_rate: 2e-4,
            lr_scheduler_type: LrScheduler::Cosine,
            warmup_ratio: 0.03,
            warmup_steps: None,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
            seed: 0,
            evals_per_epoch: 1,
            recompute: Recompute::Auto,
            memory_limit: None,
            save_steps: 0,
            save_minutes: 5.0,
            save_total_limit: 2,
            save_disk_gib: 20.0,
        }
    }
}

impl TrainConfig {
    /// Refuses settings that no run can have.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let c = self;
        let setting = |key, ok: bool, value: String, allowed| {
            if ok { Ok(()) } else { Err(Error::Setting { key, value, allowed }) }
        };
        let unit = |v: f64| (0.0..1.0).contains(&v);
        let epochs = |n: usize| (1..=MAX_EPOCHS).contains(&n);
        let fixed = match c.epochs {
            Epochs::Auto => true,
            Epochs::Fixed(n) => epochs(n),
        };
        setting("epochs", fixed, c.epochs.to_string(), "\"auto\" or from 1 to 10")?;
        setting("max_epochs", epochs(c.max_epochs), c.max_epochs.to_string(), "from 1 to 10")?;
        let minutes = c.save_minutes;
        setting("save_minutes", minutes.is_finite() && minutes >= 0.0, minutes.to_string(), "at least 0")?;
        let gib = c.save_disk_gib;
        setting("save_disk_gib", gib.is_finite() && gib > 0.0, gib.to_string(), "above 0")?;
        setting("batch_size", c.batch_size >= 1, c.batch_size.to_string(), "at least 1")?;
        let lr = c.learning_rate;
        setting("learning_rate", lr.is_finite() && lr > 0.0, lr.to_string(), "above 0")?;
        setting("adam_beta1", unit(c.adam_beta1), c.adam_beta1.to_string(), "at least 0 and below 1")?;
        setting("adam_beta2", unit(c.adam_beta2), c.adam_beta2.to_string(), "at least 0 and below 1")?;
        let eps = c.adam_epsilon;
        setting("adam_epsilon", eps.is_finite() && eps > 0.0, eps.to_string(), "above 0")?;
        let decay = c.weight_decay;
        setting("weight_decay", decay.is_finite() && decay >= 0.0, decay.to_string(), "at least 0")?;
        let norm = c.max_grad_norm;
        setting(
            "max_grad_norm",
            norm.is_finite() && norm >= 0.0,
            norm.to_string(),
            "at least 0 (0 turns clipping off)",
        )?;
        setting(
            "warmup_ratio",
            (0.0..=1.0).contains(&c.warmup_ratio),
            c.warmup_ratio.to_string(),
            "from 0 to 1",
        )
    }
}
