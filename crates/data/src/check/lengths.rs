//! How long rows are: exact percentiles from a count per length, and bins to draw.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Bins that a histogram has at most.
const BINS: usize = 16;

/// A count per length: as small as the lengths are few, however many rows there are.
#[derive(Debug, Clone, Default)]
pub(super) struct Counts {
    rows: BTreeMap<usize, usize>,
}

/// How long the rows of a data set are, in tokens. All zero when there is none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Lengths {
    /// Rows counted.
    pub rows: usize,
    /// Tokens of all of them.
    pub tokens: usize,
    /// The shortest.
    pub min: usize,
    /// One row in twenty is at most this long.
    pub p5: usize,
    /// Half of the rows are at most this long.
    pub p50: usize,
    /// Nineteen rows in twenty are at most this long.
    pub p95: usize,
    /// 99 rows in a hundred are at most this long.
    pub p99: usize,
    /// The longest.
    pub max: usize,
    /// The mean.
    pub mean: f64,
    /// Rows by length, in ascending order, without gaps from `min` to `max`.
    pub bins: Vec<Bin>,
}

/// The rows of one range of lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bin {
    /// Shortest length of the range.
    pub from: usize,
    /// Longest length of the range, which belongs to it.
    pub to: usize,
    /// Rows in it.
    pub rows: usize,
}

impl Counts {
    pub(super) fn add(&mut self, length: usize) {
        *self.rows.entry(length).or_default() += 1;
    }

    /// Length and number of rows, the longest first.
    pub(super) fn descending(&self) -> impl Iterator<Item = (usize, usize)> {
        self.rows.iter().rev().map(|(length, rows)| (*length, *rows))
    }

    /// The smallest length that at least `percent` of the rows do not exceed (nearest rank).
    fn percentile(&self, percent: usize, rows: usize) -> usize {
        let rank = (rows * percent).div_ceil(100).max(1);
        let mut below = 0;
        for (length, count) in &self.rows {
            below += count;
            if below >= rank {
                return *length;
            }
        }
        0
    }

    pub(super) fn summary(&self) -> Lengths {
        let rows: usize = self.rows.values().sum();
        let (Some((&min, _)), Some((&max, _))) = (self.rows.first_key_value(), self.rows.last_key_value())
        else {
            return Lengths::default();
        };
        let tokens: usize = self.rows.iter().map(|(length, count)| length * count).sum();
        let p = |percent| self.percentile(percent, rows);
        Lengths {
            rows,
            tokens,
            min,
            p5: p(5),
            p50: p(50),
            p95: p(95),
            p99: p(99),
            max,
            mean: tokens as f64 / rows as f64,
            bins: self.bins(min, max),
        }
    }

    fn bins(&self, min: usize, max: usize) -> Vec<Bin> {
        let starts = starts(min, max);
        let ends = starts.iter().skip(1).map(|next| next - 1).chain([max]);
        let bins = starts.iter().zip(ends);
        bins.map(|(&from, to)| Bin { from, to, rows: self.rows.range(from..=to).map(|(_, n)| n).sum() })
            .collect()
    }
}

/// Where the bins begin: of equal width, or growing by a factor when the lengths are far apart.
fn starts(min: usize, max: usize) -> Vec<usize> {
    let low = min.max(1) as f64;
    let ratio = (max + 1) as f64 / low;
    if ratio < 4.0 || max - min < BINS {
        return (min..=max).step_by((max - min + 1).div_ceil(BINS)).collect();
    }
    let at = |i: usize| low * ratio.powf(i as f64 / BINS as f64);
    let mut starts: Vec<usize> = (0..BINS).map(|i| at(i).round() as usize).collect();
    starts[0] = min;
    starts.sort_unstable();
    starts.dedup();
    starts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_sorted_list() {
        for salt in 0..40u64 {
            let hash = |i: u64| crate::sip::siphash24(salt, 2, &i.to_le_bytes()) as usize;
            let mut all: Vec<usize> = (0..=salt * 13).map(|i| hash(i) % (1 << (salt % 12))).collect();
            let mut counts = Counts::default();
            all.iter().for_each(|length| counts.add(*length));
            all.sort_unstable();
            let naive = |p: usize| all[((all.len() * p) as f64 / 100.0).ceil() as usize - 1];
            let found = counts.summary();
            assert_eq!([found.p5, found.p50, found.p95, found.p99], [5, 50, 95, 99].map(naive), "{all:?}");
            assert_eq!((found.min, found.max), (all[0], *all.last().unwrap()));
            assert_eq!((found.rows, found.tokens), (all.len(), all.iter().sum()));
        }
        assert_eq!(Counts::default().summary(), Lengths::default());
    }

    #[test]
    fn every_row_is_in_one_bin_and_the_bins_leave_no_gap() {
        for (min, max) in [(0, 0), (3, 3), (0, 15), (0, 16), (1, 100_000), (0, 70_000), (500, 620), (7, 29)] {
            let mut counts = Counts::default();
            (min..=max).step_by(1 + max / 997).chain([max]).for_each(|length| counts.add(length));
            let Lengths { bins, rows, .. } = counts.summary();
            assert_eq!(bins.iter().map(|b| b.rows).sum::<usize>(), rows);
            assert_eq!((bins[0].from, bins.last().unwrap().to), (min, max));
            assert!(bins.windows(2).all(|w| w[0].to + 1 == w[1].from), "{bins:?}");
            assert!(bins.len() <= BINS && bins.iter().all(|b| b.from <= b.to), "{bins:?}");
        }
    }
}
