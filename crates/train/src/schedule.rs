//! The learning rate of each step, as transformers' `get_*_schedule_with_warmup` gives it.

use crate::{LrScheduler, TrainConfig};

/// Learning rates of a run of known length.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    kind: LrScheduler,
    peak: f64,
    warmup: usize,
    total: usize,
}

impl Schedule {
    /// The schedule of a run of `total_steps` optimizer steps.
    pub fn new(config: &TrainConfig, total_steps: usize) -> Self {
        let by_ratio = (config.warmup_ratio * total_steps as f64).ceil() as usize;
        let warmup = config.warmup_steps.unwrap_or(by_ratio);
        Self { kind: config.lr_scheduler_type, peak: config.learning_rate, warmup, total: total_steps }
    }

    /// Steps of the warm-up.
    pub fn warmup_steps(&self) -> usize {
        self.warmup
    }

    /// The rate of step `step`, from 0. The warm-up starts at 0, so the first step of a run with one only fills
    /// the optimizer's moments.
    pub fn rate(&self, step: usize) -> f64 {
        let share = |n: usize, of: usize| n as f64 / of.max(1) as f64;
        if step < self.warmup {
            return self.peak * share(step, self.warmup);
        }
        let rest = self.total.saturating_sub(self.warmup);
        let factor = match self.kind {
            LrScheduler::Constant => 1.0,
            LrScheduler::Linear => share(self.total.saturating_sub(step), rest),
            LrScheduler::Cosine => {
                (0.5 * (1.0 + (std::f64::consts::PI * share(step - self.warmup, rest)).cos())).max(0.0)
            }
        };
        self.peak * factor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: LrScheduler, warmup: usize, total: usize) -> Schedule {
        Schedule { kind, peak: 2.0, warmup, total }
    }

    #[test]
    fn cosine_rises_from_zero_and_falls_to_zero() {
        let s = schedule(LrScheduler::Cosine, 10, 20);
        let want = [(0, 0.0), (5, 1.0), (10, 2.0), (15, 1.0), (20, 0.0)];
        assert!(want.iter().all(|&(step, rate)| (s.rate(step) - rate).abs() < 1e-12));
    }

    #[test]
    fn linear_and_constant_follow_transformers() {
        let s = schedule(LrScheduler::Linear, 2, 10);
        assert!(
            [(1, 1.0), (2, 2.0), (6, 1.0), (9, 0.25), (10, 0.0)]
                .iter()
                .all(|&(k, r)| (s.rate(k) - r).abs() < 1e-12)
        );
        let s = schedule(LrScheduler::Constant, 4, 10);
        assert!([(0, 0.0), (1, 0.5), (4, 2.0), (9, 2.0)].iter().all(|&(k, r)| (s.rate(k) - r).abs() < 1e-12));
    }

    #[test]
    fn warmup_steps_win_over_the_ratio_which_rounds_up() {
        let config = TrainConfig { warmup_ratio: 0.03, ..TrainConfig::default() };
        assert_eq!(Schedule::new(&config, 90).warmup_steps(), 3);
        assert_eq!(Schedule::new(&TrainConfig { warmup_steps: Some(0), ..config }, 90).warmup_steps(), 0);
    }
}
