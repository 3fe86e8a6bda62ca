//! How often the rows are visited: the number given, or a bound from the rows themselves ([`Epochs::Auto`]).
//!
//! The rule behind `auto` starts at 3 epochs. Few rows are visited more often, until 100 row visits and 50 steps come
//! together; many rows less often, so that 25,000 row visits are enough. This is a bound: how much of it is used, the
//! held-out rows decide ([`crate::evidence`]).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::TrainConfig;

/// Most epochs that a run can have.
pub const MAX_EPOCHS: usize = 10;

/// Epochs of a middling number of rows.
const USUAL: usize = 3;
/// Row visits that a run has at least, where `MAX_EPOCHS` allows.
const LEAST_VISITS: usize = 100;
/// Row visits after which another epoch is no longer worth its time.
const MOST_VISITS: usize = 25_000;
/// Optimizer steps that a run has at least, where `MAX_EPOCHS` allows.
const LEAST_STEPS: usize = 50;
/// Held-out rows from which on their losses decide when to end.
const ROWS_FOR_EVIDENCE: usize = 20;
/// Evaluations of an epoch, at least, when they decide when to end.
const EVALUATIONS: usize = 2;
/// Evaluations after the first epoch without improvement that end a run, at least.
const PATIENCE: usize = 2;

/// Passes over the training rows, as they are asked for. Written as `"auto"` or as a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Epochs {
    /// As many as the rows need.
    #[default]
    Auto,
    /// This many, whatever the losses say.
    Fixed(usize),
}

/// What [`Epochs`] comes to for given rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochPlan {
    /// Epochs of the run; with `patience` at most.
    pub epochs: usize,
    /// Evaluations of each epoch, no more than it has steps; 0 for none at all.
    pub evaluations_per_epoch: usize,
    /// Evaluations without improvement, those of the first epoch not counted, after which training ends and the best
    /// parameters are kept; nothing where all epochs are done and the last parameters are kept.
    pub patience: Option<usize>,
    /// Where this comes from: the inputs and the rule, in a sentence.
    pub rule: String,
}

impl EpochPlan {
    /// The plan for so many rows to train on and held out.
    pub fn new(config: &TrainConfig, rows: usize, validation_rows: usize) -> Self {
        let steps = rows.div_ceil(config.batch_size.max(1));
        let wanted = if validation_rows == 0 { 0 } else { config.evals_per_epoch };
        let evaluations_per_epoch = wanted.min(steps);
        let bound = match config.epochs {
            Epochs::Fixed(epochs) => {
                let rule = format!("`train.epochs` is {epochs}");
                return Self { epochs, evaluations_per_epoch, patience: None, rule };
            }
            Epochs::Auto => upper_bound(rows, config.batch_size, config.max_epochs),
        };
        let epochs = bound.epochs;
        let given = format!("auto: at most {epochs}, for {rows} rows in steps of {}", config.batch_size);
        let why = bound.why;
        if evaluations_per_epoch == 0 || validation_rows < ROWS_FOR_EVIDENCE {
            let rule = format!(
                "{given} ({why}); all are done, as ending earlier takes evaluations on {ROWS_FOR_EVIDENCE} held-out \
                 rows or more"
            );
            return Self { epochs, evaluations_per_epoch, patience: None, rule };
        }
        let evaluations_per_epoch = wanted.max(EVALUATIONS).min(steps);
        // Without improvement for a whole epoch, however often it is looked at.
        let patience = evaluations_per_epoch.max(PATIENCE);
        let rule = format!(
            "{given} ({why}); training ends after {patience} evaluations without improvement, those of the first epoch \
             not counted, and the best adapter is kept"
        );
        Self { epochs, evaluations_per_epoch, patience: Some(patience), rule }
    }
}

/// The bound of `auto`, and what it was decided by.
struct Bound {
    epochs: usize,
    why: String,
}

fn upper_bound(rows: usize, batch_size: usize, max_epochs: usize) -> Bound {
    let rows = rows.max(1);
    let (mut epochs, mut why) = (USUAL, "the usual number".to_owned());
    if USUAL * rows < LEAST_VISITS {
        epochs = LEAST_VISITS.div_ceil(rows);
        why = format!("{LEAST_VISITS} visits of rows are wanted");
    } else if USUAL * rows > MOST_VISITS {
        epochs = (MOST_VISITS / rows).max(1);
        why = format!("{MOST_VISITS} visits of rows are enough");
    }
    let for_steps = LEAST_STEPS.saturating_mul(batch_size).div_ceil(rows);
    if for_steps > epochs {
        epochs = for_steps;
        why = format!("{LEAST_STEPS} steps are wanted");
    }
    let most = max_epochs.clamp(1, MAX_EPOCHS);
    if epochs > most {
        epochs = most;
        why = format!("`train.max_epochs` is {most}");
    }
    Bound { epochs, why }
}

impl fmt::Display for Epochs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Fixed(epochs) => epochs.fmt(f),
        }
    }
}

impl FromStr for Epochs {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            number => number.parse().map(Self::Fixed).map_err(|_| "expected `auto` or a number".to_owned()),
        }
    }
}

impl Serialize for Epochs {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => to.serialize_str("auto"),
            Self::Fixed(epochs) => epochs.serialize(to),
        }
    }
}

impl<'de> Deserialize<'de> for Epochs {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(usize),
            Word(String),
        }
        match Written::deserialize(from)? {
            Written::Number(epochs) => Ok(Self::Fixed(epochs)),
            Written::Word(word) if word == "auto" => Ok(Self::Auto),
            Written::Word(word) => {
                Err(serde::de::Error::custom(format!("expected \"auto\" or a number, found {word:?}")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epochs(rows: usize, batch_size: usize, max_epochs: usize) -> usize {
        upper_bound(rows, batch_size, max_epochs).epochs
    }

    #[test]
    fn the_bound_follows_the_published_numbers() {
        for (rows, batch_size, want) in [
            (1, 8, 10),
            (34, 8, 10),
            (44, 8, 10),
            (45, 8, 9),
            (50, 8, 8),
            (67, 8, 6),
            (100, 8, 4),
            (133, 8, 4),
            (134, 8, 3),
            (8_333, 8, 3),
            (8_334, 8, 2),
            (12_500, 8, 2),
            (12_501, 8, 1),
            (1_000_000, 8, 1),
            // One row a step: the visits decide, not the steps.
            (20, 1, 5),
            (33, 1, 4),
            (34, 1, 3),
            // Large batches: the steps decide.
            (1_000, 64, 4),
            (10_000, 1_024, 6),
        ] {
            assert_eq!(epochs(rows, batch_size, 10), want, "{rows} rows in steps of {batch_size}");
        }
        assert_eq!(epochs(50, 8, 4), 4);
    }

    #[test]
    fn the_bound_is_in_range_and_never_rises_with_more_rows() {
        for batch_size in [1, 3, 8, 64, 4096] {
            for max_epochs in [1, 3, 10] {
                let mut before = MAX_EPOCHS;
                for rows in (0..2_000).chain((2_000..60_000).step_by(7)) {
                    let now = epochs(rows, batch_size, max_epochs);
                    assert!((1..=max_epochs).contains(&now), "{rows} rows");
                    assert!(
                        now <= before,
                        "{rows} rows in steps of {batch_size}: {before} epochs, then {now}"
                    );
                    before = now;
                }
                assert_eq!(epochs(usize::MAX / 4, batch_size, max_epochs), 1);
            }
        }
        // Nonsense is refused elsewhere; here it must not overflow.
        assert_eq!((epochs(0, 0, 0), epochs(1, usize::MAX, 99)), (1, 10));
    }

    #[test]
    fn the_plan_evaluates_each_half_epoch_where_there_are_rows_enough() {
        let config = TrainConfig::default();
        let plan = |config: &TrainConfig, rows, held| {
            let plan = EpochPlan::new(config, rows, held);
            (plan.epochs, plan.evaluations_per_epoch, plan.patience)
        };
        assert_eq!(plan(&config, 100, 20), (4, 2, Some(2)));
        assert_eq!(plan(&config, 100, 19), (4, 1, None));
        assert_eq!(plan(&config, 100, 0), (4, 0, None));
        assert_eq!(plan(&TrainConfig { evals_per_epoch: 0, ..config.clone() }, 100, 99), (4, 0, None));
        // Looked at more often, an epoch's worth of patience; never more often than there are steps.
        let often = TrainConfig { evals_per_epoch: 5, ..config.clone() };
        assert_eq!(plan(&often, 100, 20), (4, 5, Some(5)));
        assert_eq!(plan(&often, 20, 20), (10, 3, Some(3)));
        assert_eq!(plan(&config, 8, 20), (10, 1, Some(2)));
        let fixed = TrainConfig { epochs: Epochs::Fixed(7), max_epochs: 2, ..config };
        assert_eq!(plan(&fixed, 100, 99), (7, 1, None));
    }

    #[test]
    fn the_rule_is_told_with_its_inputs() {
        let config = TrainConfig::default();
        assert_eq!(
            EpochPlan::new(&config, 50, 20).rule,
            "auto: at most 8, for 50 rows in steps of 8 (50 steps are wanted); training ends after 2 evaluations \
             without improvement, those of the first epoch not counted, and the best adapter is kept"
        );
        let bounded = TrainConfig { max_epochs: 2, ..config };
        assert_eq!(
            EpochPlan::new(&bounded, 50, 3).rule,
            "auto: at most 2, for 50 rows in steps of 8 (`train.max_epochs` is 2); all are done, as ending earlier \
             takes evaluations on 20 held-out rows or more"
        );
        let fixed = TrainConfig { epochs: Epochs::Fixed(3), ..bounded };
        assert_eq!(EpochPlan::new(&fixed, 50, 30).rule, "`train.epochs` is 3");
    }

    #[test]
    fn epochs_are_written_as_a_word_or_a_number() {
        for (epochs, text) in [(Epochs::Auto, "\"auto\""), (Epochs::Fixed(3), "3")] {
            assert_eq!(serde_json::to_string(&epochs).unwrap(), text);
            assert_eq!(serde_json::from_str::<Epochs>(text).unwrap(), epochs);
            assert_eq!(epochs.to_string().parse(), Ok(epochs));
        }
        for bad in ["\"3\"", "-1", "2.5", "true"] {
            serde_json::from_str::<Epochs>(bad).unwrap_err();
        }
        "many".parse::<Epochs>().unwrap_err();
    }
}
