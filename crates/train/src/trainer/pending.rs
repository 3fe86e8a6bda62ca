//! What is queued on the device and not read yet.

use std::collections::VecDeque;
use std::time::Instant;

use tunesmith_data::Place;
use tunesmith_ops::Kernels;

use super::StepOutcome;
use super::batches::Origin;
use crate::Error;

/// Results on their way to the host, in the order in which they were queued: the losses of each micro-batch, and behind
/// those of a step what became of its update.
#[derive(Debug)]
pub(super) struct Pending<L> {
    entries: VecDeque<Entry<L>>,
    /// Entries that are losses.
    losses: usize,
    /// Sum of the token losses that were read of the oldest step that is not whole yet.
    sum: f64,
    /// With the time at which each was known.
    outcomes: Vec<(StepOutcome, Instant)>,
}

#[derive(Debug)]
struct Entry<L> {
    /// Optimizer step, from 1.
    step: usize,
    later: L,
    of: Of,
}

#[derive(Debug)]
enum Of {
    Losses(Origin),
    Update(Update),
}

/// A step whose update is queued.
#[derive(Debug)]
pub(super) struct Update {
    pub(super) places: Vec<Place>,
    pub(super) tokens: usize,
    pub(super) trained_tokens: usize,
}

impl<L> Default for Pending<L> {
    fn default() -> Self {
        Self { entries: VecDeque::new(), losses: 0, sum: 0.0, outcomes: Vec::new() }
    }
}

impl<L> Pending<L> {
    pub(super) fn push_losses(&mut self, step: usize, later: L, origin: Origin) {
        self.losses += 1;
        self.entries.push_back(Entry { step, later, of: Of::Losses(origin) });
    }

    pub(super) fn push_update(&mut self, step: usize, later: L, update: Update) {
        self.entries.push_back(Entry { step, later, of: Of::Update(update) });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Forgets what was queued of a step that has no update, and what was read of it.
    pub(super) fn forget_step(&mut self, step: usize) {
        self.entries.retain(|entry| entry.step != step);
        self.losses = self.entries.iter().filter(|entry| matches!(entry.of, Of::Losses(_))).count();
        if self.is_empty() {
            self.sum = 0.0;
        }
    }

    /// Forgets everything but the outcomes.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
        (self.losses, self.sum) = (0, 0.0);
    }

    /// The outcomes of steps that nobody has taken yet, in their order.
    pub(super) fn take_outcomes(&mut self) -> Vec<(StepOutcome, Instant)> {
        std::mem::take(&mut self.outcomes)
    }

    /// The sum of the losses that were read since the last update.
    pub(super) fn take_sum(&mut self) -> f64 {
        std::mem::take(&mut self.sum)
    }

    /// Waits for the oldest results until those of no more than `ahead` micro-batches are left, and no update before
    /// them.
    ///
    /// # Errors
    /// With the step where a number was not finite; or a device fault.
    pub(super) fn read<K: Kernels<Later = L>>(&mut self, k: &K, ahead: usize) -> Result<(), Error> {
        let first_is_update =
            |entries: &VecDeque<Entry<L>>| entries.front().is_some_and(|e| matches!(e.of, Of::Update(_)));
        while self.losses > ahead || first_is_update(&self.entries) {
            let Some(Entry { step, later, of }) = self.entries.pop_front() else { break };
            let values = k.wait(later)?;
            match of {
                Of::Losses(origin) => {
                    self.losses -= 1;
                    let places = origin.not_finite(&values);
                    if !places.is_empty() {
                        return Err(Error::LossNotFinite { step, places });
                    }
                    self.sum += values.iter().sum::<f64>();
                }
                Of::Update(update) => {
                    let sum = self.take_sum();
                    self.outcomes.push((update.outcome(step, sum, &values)?, Instant::now()));
                }
            }
        }
        Ok(())
    }
}

impl Update {
    /// From the sum of the step's losses, and what [`Kernels::clip_and_update`] gives.
    fn outcome(self, step: usize, sum: f64, results: &[f64]) -> Result<StepOutcome, Error> {
        let Self { places, tokens, trained_tokens } = self;
        let &[grad_norm, _, updated] = results else { return Err(Error::NoUpdate { step }) };
        if !grad_norm.is_finite() {
            return Err(Error::GradientNotFinite { step, places });
        }
        if updated != 1.0 {
            // Neither a loss nor the norm was wrong, and still the device has refused.
            return Err(Error::NoUpdate { step });
        }
        Ok(StepOutcome { loss: sum / trained_tokens as f64, grad_norm, tokens, trained_tokens })
    }
}
