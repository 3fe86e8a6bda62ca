//! What the planner knows of the rows: their lengths.

use tunesmith_data::pack;

/// Rows of a typical step that are looked at, at most.
const LOOKED_AT: usize = 1024;

/// Lengths of all rows in tokens, those of the validation among them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lengths {
    /// Longest first.
    sorted: Vec<usize>,
}

impl FromIterator<usize> for Lengths {
    fn from_iter<I: IntoIterator<Item = usize>>(lengths: I) -> Self {
        let mut sorted: Vec<usize> = lengths.into_iter().collect();
        sorted.sort_unstable_by(|a, b| b.cmp(a));
        Self { sorted }
    }
}

impl Lengths {
    /// Tokens of the longest row; 0 without rows.
    pub fn longest(&self) -> usize {
        self.sorted.first().copied().unwrap_or(0)
    }

    /// All lengths, the longest first.
    pub fn longest_first(&self) -> &[usize] {
        &self.sorted
    }

    /// Most tokens that so many rows have together.
    pub fn largest(&self, rows: usize) -> usize {
        self.sorted.iter().take(rows).sum()
    }

    /// Keys that a token sees on average, itself among them.
    pub fn mean_keys(&self) -> f64 {
        let sum = |of: fn(f64) -> f64| self.sorted.iter().map(|&n| of(n as f64)).sum::<f64>();
        sum(|n| n * (n + 1.0) / 2.0) / sum(|n| n).max(1.0)
    }

    /// The rows of a step like most: of `rows` equal parts of all rows, the middle of each.
    pub(super) fn typical(&self, rows: usize) -> Vec<usize> {
        let rows = rows.clamp(1, LOOKED_AT);
        let all = self.sorted.len();
        let middle = |i: usize| (2 * i + 1) * all / (2 * rows);
        (0..rows).filter_map(|i| self.sorted.get(middle(i))).copied().collect()
    }
}

/// Micro-batches that these rows make in a budget of tokens, which no row is longer than.
pub(super) fn packs(rows: &[usize], budget: usize) -> usize {
    pack(rows, budget).map_or(rows.len(), |packs| packs.len()).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_say_what_a_step_can_have_and_usually_has() {
        let lengths: Lengths = [3, 9, 1, 5, 7, 5].into_iter().collect();
        assert_eq!((lengths.longest(), lengths.largest(2), lengths.largest(99)), (9, 16, 30));
        assert_eq!(lengths.typical(3), [7, 5, 1]);
        assert_eq!(lengths.typical(1), [5]);
        let keys = (45.0 + 28.0 + 2.0 * 15.0 + 6.0 + 1.0) / 30.0;
        assert!((lengths.mean_keys() - keys).abs() < 1e-12);
        let none: Lengths = std::iter::empty().collect();
        assert_eq!((none.longest(), none.largest(3), none.mean_keys()), (0, 0, 0.0));
        assert!(none.typical(4).is_empty());
        assert_eq!((packs(&[5, 5, 3], 10), packs(&[5, 5, 3], 5), packs(&[], 10)), (2, 3, 1));
    }
}
