//! What `tunesmith bench` has found.

use std::time::Duration;

use serde::Serialize;
use tunesmith_model::Flops;
use tunesmith_ops::Times;

use super::peak::Peak;

/// All that was measured, and of what.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// This program's version.
    pub version: &'static str,
    /// The model.
    pub model: Model,
    /// What computed.
    pub device: Device,
    /// What a step had to do.
    pub batch: Batch,
    /// What is computed again in the backward pass: a word of `train.recompute`.
    pub recompute: String,
    /// Seed of weights, adapter and tokens.
    pub seed: u64,
    /// Steps before the timed ones.
    pub warmup: usize,
    /// Making the weights.
    pub weights: Weights,
    /// The timed steps.
    pub steps: Steps,
    /// Tokens a second, by the median step.
    pub tokens_per_second: f64,
    /// What a step needs.
    pub flops: StepFlops,
    /// The largest products, measured before the steps.
    pub peak: Peak,
    /// The arithmetic that the steps need, as a share of that peak.
    pub mfu: f64,
    /// The same with what is computed again.
    pub hfu: f64,
    /// The maker's word for the card, if it is known.
    pub datasheet: Option<Datasheet>,
    /// The most memory that was taken.
    pub memory: Memory,
    /// What was drawn in the timed steps.
    pub energy: Energy,
    /// Loss of the first step and of the last, in nats a token: that of the logarithm of the vocabulary, or so.
    pub loss: [f64; 2],
    /// Steps that were taken again with marks around every operation.
    pub marked_steps: usize,
    /// The share of each operation in the time of those; they sum to 1. The longest first, the rest last.
    pub shares: Vec<Share>,
}

/// A model's sizes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Model {
    /// The name it was asked for by, or the path of its `config.json`.
    pub name: String,
    /// Frozen weights.
    pub parameters: u64,
    /// Trained ones.
    pub trainable_parameters: usize,
    /// Rank of the adapter.
    pub rank: usize,
}

/// What computed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Device {
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// What it calls itself.
    pub name: String,
    /// Threads that compute, on the CPU.
    pub threads: Option<usize>,
}

/// The tokens of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Batch {
    /// All of them, each predicted.
    pub tokens: usize,
    /// Documents that they are in.
    pub documents: usize,
    /// The longest one.
    pub longest: usize,
    /// `equal` or `mix`.
    pub lengths: &'static str,
}

/// Making the weights.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Weights {
    /// Seconds, with the memory for them.
    pub seconds: f64,
    /// Bytes of them on the device, with room for the adapter.
    pub bytes: u64,
}

/// Times of the steps in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Steps {
    /// How many were timed.
    pub count: usize,
    /// By the device's own clock.
    pub median_seconds: f64,
    /// The fastest.
    pub least_seconds: f64,
    /// The slowest.
    pub most_seconds: f64,
    /// All of them by the host's clock, from before the first to after the last.
    pub wall_seconds: f64,
}

impl Steps {
    /// Of the times of single steps, of which there is at least one.
    pub(super) fn of(times: &[Duration], wall: Duration) -> Self {
        let mut sorted: Vec<f64> = times.iter().map(Duration::as_secs_f64).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let n = sorted.len();
        let at = |i: usize| sorted.get(i).copied().unwrap_or(0.0);
        Self {
            count: n,
            median_seconds: f64::midpoint(at(n.saturating_sub(1) / 2), at(n / 2)),
            least_seconds: at(0),
            most_seconds: at(n.saturating_sub(1)),
            wall_seconds: wall.as_secs_f64(),
        }
    }
}

/// Floating-point operations.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StepFlops {
    /// That a token needs, on average.
    pub per_token: f64,
    /// That a step needs.
    pub needed: f64,
    /// With what is computed again.
    pub computed: f64,
    /// Of `needed`: the frozen linears, forward and backward.
    pub linears: f64,
    /// The output head.
    pub head: f64,
    /// The adapter.
    pub lora: f64,
    /// Attention within documents.
    pub attention: f64,
}

impl StepFlops {
    pub(super) fn of(flops: &Flops, tokens: usize) -> Self {
        Self {
            per_token: flops.needed() / tokens as f64,
            needed: flops.needed(),
            computed: flops.computed(),
            linears: flops.linear_forward + flops.linear_backward,
            head: flops.head,
            lora: flops.lora,
            attention: flops.attention_forward + flops.attention_backward,
        }
    }
}

/// A card by its datasheet.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Datasheet {
    /// bf16 products without sparsity, in units of 10^12 operations a second.
    pub tflop_s: f64,
    /// Four operations for each frozen weight and token, as a share of it: what others report.
    pub mfu_4n: f64,
}

/// The most memory that was taken, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// On the device, where it has its own.
    pub device_peak_bytes: Option<u64>,
    /// By the process on the host, where the system tells.
    pub host_peak_bytes: Option<u64>,
    /// On either, as it was reckoned before.
    pub reckoned_bytes: u64,
}

/// What was drawn.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Energy {
    /// Watts on average.
    pub watts: Option<f64>,
    /// Joules in all.
    pub joules: Option<f64>,
    /// Of what: `cpu`, `gpu`.
    pub of: Vec<String>,
    /// Why all or a part is not known.
    pub unknown: Option<String>,
}

/// A share of the time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Share {
    /// `forward`, `head`, `backward` or `update`; `rest` between the operations.
    pub phase: &'static str,
    /// The operation.
    pub op: &'static str,
    /// Calls in a step.
    pub calls: f64,
    /// Seconds in a step.
    pub seconds: f64,
    /// Of the whole.
    pub share: f64,
}

/// Where the time of `steps` steps went.
pub(super) fn shares(times: &Times, steps: usize) -> Vec<Share> {
    let steps = steps.max(1) as f64;
    // Clocks have a grain: operations may come out a little longer than the whole.
    let ops: Duration = times.ops.iter().map(|op| op.time).sum();
    let all = times.total.max(ops).as_secs_f64().max(f64::MIN_POSITIVE);
    let share = |phase, op, calls: usize, time: Duration| Share {
        phase,
        op,
        calls: calls as f64 / steps,
        seconds: time.as_secs_f64() / steps,
        share: time.as_secs_f64() / all,
    };
    let mut out: Vec<Share> =
        times.ops.iter().map(|t| share(t.phase.name(), t.op, t.calls, t.time)).collect();
    out.push(share("rest", "between operations", 0, times.total.saturating_sub(ops)));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use tunesmith_ops::{OpTime, Phase};

    #[test]
    fn medians_are_of_the_middle() {
        let of = |ms: &[u64]| {
            let times: Vec<Duration> = ms.iter().map(|&ms| Duration::from_millis(ms)).collect();
            Steps::of(&times, Duration::from_millis(100))
        };
        let odd = of(&[30, 10, 20]);
        assert_eq!((odd.median_seconds, odd.least_seconds, odd.most_seconds), (0.020, 0.010, 0.030));
        assert!((of(&[40, 10, 20, 30]).median_seconds - 0.025).abs() < 1e-12);
        assert_eq!(of(&[7]).median_seconds, 0.007);
    }

    #[test]
    fn shares_sum_to_one_with_the_rest() {
        let op = |op, ms| OpTime { phase: Phase::Forward, op, calls: 4, time: Duration::from_millis(ms) };
        for total in [100, 60] {
            let times =
                Times { total: Duration::from_millis(total), ops: vec![op("gemm", 50), op("rope", 20)] };
            let shares = shares(&times, 2);
            assert!((shares.iter().map(|s| s.share).sum::<f64>() - 1.0).abs() < 1e-12);
            assert_eq!((shares[0].calls, shares[0].seconds), (2.0, 0.025));
            assert_eq!(shares.last().map(|s| (s.phase, s.share >= 0.0)), Some(("rest", true)));
        }
    }
}
