//! What the held-out rows say: whether an evaluation is better than the best one before, and when to end.
//!
//! Two evaluations of the same rows are compared row by row, so that what makes rows differ from each other falls out
//! of the comparison. An evaluation counts as better when the mean of these differences is above both 0.001 and its
//! own standard error; noise then rarely passes for learning. Each one is compared with the best, not with the last,
//! so small steps in one direction add up.

use crate::state::{Best, Exact, RunState};

/// Smallest mean difference of row losses that counts.
const MIN_DIFFERENCE: f64 = 0.001;

/// Whether row losses of `now` are better than those of `best`, of the same rows in the same order.
fn is_better(now: &[f64], best: &[Exact]) -> bool {
    let n = now.len().min(best.len());
    if n == 0 {
        return false;
    }
    let difference = |i: usize| best[i].0 - now[i];
    let mean = (0..n).map(difference).sum::<f64>() / n as f64;
    let squares: f64 = (0..n).map(|i| (difference(i) - mean).powi(2)).sum();
    let error = if n > 1 { (squares / (n - 1) as f64 / n as f64).sqrt() } else { 0.0 };
    mean > error.max(MIN_DIFFERENCE)
}

impl RunState {
    /// Takes in an evaluation after the first step: its loss, and the mean loss of each row that has one. Returns
    /// whether it is the best so far; the first one always is.
    pub(crate) fn judge(&mut self, loss: f64, rows: &[f64]) -> bool {
        self.evaluations += 1;
        let better = self.best.as_ref().is_none_or(|best| is_better(rows, &best.row_losses));
        if better {
            let row_losses = rows.iter().map(|&x| Exact(x)).collect();
            self.best = Some(Best { step: self.step, loss: Exact(loss), row_losses });
            self.evaluations_since_best = 0;
        } else {
            self.evaluations_since_best += 1;
        }
        better
    }

    /// Whether there was no improvement in `patience` evaluations after those of the first epoch.
    pub(crate) fn is_out_of_patience(&self, patience: usize, evaluations_per_epoch: usize) -> bool {
        let counted = self.evaluations.saturating_sub(evaluations_per_epoch);
        counted.min(self.evaluations_since_best) >= patience
    }
}

#[cfg(test)]
mod tests {
    use tunesmith_ops::Philox;

    use super::*;

    /// Held-out rows of the curves.
    const ROWS: usize = 24;

    /// Runs along a curve of mean losses, two evaluations an epoch, patience 2; the evaluation at which it ends, if it
    /// does before the curve, and the best one, both from 1.
    fn follow(curve: &[f64], noise: f64) -> (Option<usize>, usize) {
        let mut state = RunState::new("", curve.len() / 2, curve.len());
        let rng = Philox::new(3, 7);
        for (i, mean) in curve.iter().enumerate() {
            state.step = i + 1;
            let row = |r: usize| {
                let [a, b, ..] = rng.words([r as u32, i as u32, 0, 0]);
                // Rows differ far more from each other than from one evaluation to the next.
                let own = r as f64 * 0.3 - 3.6;
                mean + own + noise * (f64::from(a) + f64::from(b) - f64::from(u32::MAX)) / f64::from(u32::MAX)
            };
            let rows: Vec<f64> = (0..ROWS).map(row).collect();
            state.judge(*mean, &rows);
            if state.is_out_of_patience(2, 2) {
                return (Some(i + 1), state.best.unwrap().step);
            }
        }
        (None, state.best.unwrap().step)
    }

    #[test]
    fn a_falling_curve_is_followed_to_its_end() {
        let curve: Vec<f64> = (0..20).map(|i| 3.0 - 0.05 * f64::from(i)).collect();
        assert_eq!(follow(&curve, 0.0), (None, 20));
        assert_eq!(follow(&curve, 0.02), (None, 20));
    }

    #[test]
    fn a_rising_curve_is_left_with_its_lowest_point() {
        let curve = [2.0, 1.6, 1.3, 1.2, 1.15, 1.3, 1.5, 1.8, 2.0, 2.2];
        assert_eq!(follow(&curve, 0.0), (Some(7), 5));
        assert_eq!(follow(&curve, 0.05), (Some(7), 5));
        // Rising from the start: an epoch and two evaluations are seen all the same.
        assert_eq!(follow(&[1.0, 1.1, 1.2, 1.3, 1.4, 1.5], 0.0), (Some(4), 1));
        assert_eq!(follow(&[1.0, 0.9, 1.2, 1.3, 1.4, 1.5], 0.0), (Some(4), 2));
        assert_eq!(follow(&[1.0, 0.9, 0.8, 1.3, 1.4, 1.5], 0.0), (Some(5), 3));
    }

    #[test]
    fn a_flat_curve_ends_however_noisy() {
        assert_eq!(follow(&[1.0; 20], 0.0), (Some(4), 1));
        let (end, _) = follow(&[1.0; 20], 0.1);
        assert_eq!(end, Some(4));
        let (end, _) = follow(&[1.0; 20], 1.0);
        assert_eq!(end, Some(4));
    }

    #[test]
    fn one_spike_does_not_end_a_run_and_two_do() {
        let curve = [2.0, 1.8, 1.6, 1.4, 9.0, 1.2, 1.0, 0.8];
        assert_eq!(follow(&curve, 0.01), (None, 8));
        let curve = [2.0, 1.8, 1.6, 1.4, 9.0, 9.0, 1.0, 0.8];
        assert_eq!(follow(&curve, 0.01), (Some(6), 4));
        // In the first epoch it does not matter.
        let curve = [9.0, 9.0, 9.0, 1.4, 1.3, 1.2];
        assert_eq!(follow(&curve, 0.0), (None, 6));
    }

    #[test]
    fn a_slow_fall_adds_up_and_one_too_slow_does_not_count() {
        let curve: Vec<f64> = (0..12).map(|i| 1.0 - 0.0006 * f64::from(i)).collect();
        assert_eq!(follow(&curve, 0.0), (None, 11), "every second one is better by 0.0012");
        let curve: Vec<f64> = (0..12).map(|i| 1.0 - 0.0003 * f64::from(i)).collect();
        assert_eq!(follow(&curve, 0.0), (Some(4), 1));
    }

    #[test]
    fn a_difference_counts_above_its_standard_error_only() {
        let exact = |v: &[f64]| v.iter().map(|&x| Exact(x)).collect::<Vec<_>>();
        let best = exact(&[1.0, 2.0, 3.0, 4.0]);
        assert!(is_better(&[0.9, 1.9, 2.9, 3.9], &best), "each row by 0.1");
        assert!(!is_better(&[0.6, 2.01, 3.0, 4.0], &best), "one row by 0.4, one worse by 0.01");
        assert!(is_better(&[0.6, 1.9, 3.0, 4.0], &best), "mean 0.125, standard error 0.095");
        assert!(!is_better(&[0.9995, 1.9995, 2.9995, 3.9995], &best), "each row by 0.0005");
        assert!(!is_better(&[1.1, 2.1, 3.1, 4.1], &best));
        assert!(is_better(&[0.9], &exact(&[1.0])) && !is_better(&[], &[]));
    }
}
