//! Steps made ready on a thread of their own, while the device works on those before them.

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{Builder, Scope};

use tunesmith_data::{Example, Examples};

use crate::order::epoch_order;
use crate::trainer::{Collator, PreparedStep};
use crate::{Error, TrainConfig};

/// Steps that wait to be taken; one more is in the making.
const WAITING: usize = 1;

/// Where a run stands: how many steps are done, in which epoch (from 0), and how many batches of it. After the last batch
/// of an epoch it is still in that one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) step: usize,
    pub(crate) epoch: usize,
    pub(crate) batch: usize,
}

impl Position {
    /// After one more step, where an epoch has `per_epoch` of them.
    pub(crate) fn next(self, per_epoch: usize) -> Self {
        let (epoch, batch) =
            if self.batch == per_epoch { (self.epoch + 1, 1) } else { (self.epoch, self.batch + 1) };
        Self { step: self.step + 1, epoch, batch }
    }
}

/// The steps of a run in their order, each made from its rows ahead of time.
///
/// What is in a step follows from the seed and its place alone, so that who makes it and when changes nothing. Rows that
/// cannot be read are an error of their own step and of none before it.
#[derive(Debug)]
pub(crate) struct Prefetch {
    steps: Receiver<Result<PreparedStep, Error>>,
}

impl Prefetch {
    /// Starts with the step after `from`, of a run of `total` steps. The thread ends with the last one, with the first
    /// error, or when nobody takes steps any more.
    ///
    /// # Errors
    /// If no thread can be had.
    pub(crate) fn start<'scope, T: Examples + Sync + ?Sized>(
        scope: &'scope Scope<'scope, '_>,
        train: &'scope T,
        collator: Collator,
        config: &TrainConfig,
        from: Position,
        total: usize,
    ) -> Result<Self, Error> {
        let (out, steps) = sync_channel(WAITING);
        let (seed, size) = (config.seed, config.batch_size);
        let make = move || {
            let per_epoch = train.len().div_ceil(size);
            let (mut order, mut at) = (Vec::new(), from);
            while at.step < total {
                at = at.next(per_epoch);
                if order.is_empty() || at.batch == 1 {
                    order = epoch_order(seed, at.epoch, train.len());
                }
                let start = (at.batch - 1) * size;
                let step = prepared(train, &collator, &order[start..order.len().min(start + size)]);
                let failed = step.is_err();
                if out.send(step).is_err() || failed {
                    break;
                }
            }
        };
        Builder::new().name("rows".to_owned()).spawn_scoped(scope, make).map_err(Error::Thread)?;
        Ok(Self { steps })
    }

    /// The next step.
    ///
    /// # Errors
    /// If its rows cannot be read or have nothing to train on.
    pub(crate) fn next(&mut self) -> Result<PreparedStep, Error> {
        let gone = |_| Err(Error::Observer("the thread that reads rows has ended".into()));
        self.steps.recv().unwrap_or_else(gone)
    }
}

/// The rows of these numbers as a step.
fn prepared<T: Examples + ?Sized>(
    train: &T,
    collator: &Collator,
    rows: &[usize],
) -> Result<PreparedStep, Error> {
    let rows = rows.iter().map(|&r| train.get(r)).collect::<Result<Vec<_>, _>>()?;
    let rows: Vec<&Example> = rows.iter().map(AsRef::as_ref).collect();
    collator.step(&rows)
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::thread::scope;

    use tunesmith_data::Place;

    use super::*;
    use crate::plan::MicroBatches;

    /// Rows of which one cannot be read.
    struct Rows {
        rows: Vec<Example>,
        broken: Option<usize>,
    }

    impl Rows {
        fn new(count: usize, broken: Option<usize>) -> Self {
            let row = |i: usize| Example {
                ids: vec![1; 2 + i % 3],
                trained: (0..2 + i % 3).map(|t| t > 0).collect(),
                place: Place::line(i),
            };
            Self { rows: (0..count).map(row).collect(), broken }
        }
    }

    impl Examples for Rows {
        fn len(&self) -> usize {
            self.rows.len()
        }
        fn tokens(&self, i: usize) -> usize {
            self.rows[i].ids.len()
        }
        fn trained_tokens(&self, i: usize) -> usize {
            self.rows[i].trained_tokens()
        }
        fn get(&self, i: usize) -> Result<Cow<'_, Example>, tunesmith_data::Error> {
            match self.broken {
                Some(broken) if broken == i => {
                    Err(tunesmith_data::Error::TooLongToPack { tokens: 1, budget: 0 })
                }
                _ => Ok(Cow::Borrowed(&self.rows[i])),
            }
        }
    }

    fn config() -> TrainConfig {
        TrainConfig { batch_size: 4, seed: 9, ..TrainConfig::default() }
    }

    fn collator() -> Collator {
        let lengths = std::iter::repeat_n(4, 10).collect();
        Collator::new(&config(), MicroBatches::usual(&config(), &lengths, 1, 1), 1, false)
    }

    const START: Position = Position { step: 0, epoch: 0, batch: 0 };

    #[test]
    fn steps_come_in_their_order_from_wherever_a_run_goes_on() {
        let rows = Rows::new(10, None);
        let want: Vec<Vec<Place>> = (0..3)
            .flat_map(|epoch| {
                let order = epoch_order(9, epoch, 10);
                order
                    .chunks(4)
                    .map(|batch| batch.iter().map(|&i| Place::line(i)).collect())
                    .collect::<Vec<_>>()
            })
            .collect();
        let mut at = START;
        for start in 0..=9 {
            scope(|scope| {
                let mut steps = Prefetch::start(scope, &rows, collator(), &config(), at, 9).unwrap();
                for want in &want[start..] {
                    assert_eq!(steps.next().unwrap().places(), want, "from step {start}");
                }
                steps.next().unwrap_err();
            });
            at = at.next(3);
        }
        assert_eq!(at, Position { step: 10, epoch: 3, batch: 1 });
    }

    #[test]
    fn a_row_that_cannot_be_read_is_an_error_of_its_step() {
        let third = epoch_order(9, 0, 10)[9];
        let rows = Rows::new(10, Some(third));
        scope(|scope| {
            let mut steps = Prefetch::start(scope, &rows, collator(), &config(), START, 9).unwrap();
            steps.next().unwrap();
            steps.next().unwrap();
            assert!(matches!(steps.next().unwrap_err(), Error::Data(_)));
            steps.next().unwrap_err();
        });
        // Nobody has to take what was made.
        scope(|scope| drop(Prefetch::start(scope, &rows, collator(), &config(), START, 9).unwrap()));
    }
}
