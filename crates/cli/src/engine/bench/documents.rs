//! Random documents of given lengths.

use tunesmith_data::{Example, Place};
use tunesmith_ops::Philox;

/// Lengths as instructions with their answers have them: sixteen quantiles of a spread that is about log-normal. They sum
/// to 3,200: 200 tokens on average.
const MIX: [usize; 16] = [24, 36, 48, 60, 75, 90, 108, 127, 149, 174, 203, 240, 290, 362, 480, 734];

/// What sets these numbers apart from others of the same seed.
const PURPOSE: u32 = 0xbe7c;

/// Documents of `each` tokens that have `tokens` in all; the last one is what is left.
pub(super) fn equal(tokens: usize, each: usize) -> Vec<usize> {
    fill(tokens, std::iter::repeat(each.max(1)))
}

/// Documents of [`MIX`]'s lengths in an order of the seed that have `tokens` in all; the last one is what is left.
pub(super) fn mix(tokens: usize, seed: u64) -> Vec<usize> {
    let rng = Philox::new(seed, 0);
    let mut round = 0;
    let mut order: Vec<usize> = Vec::new();
    let next = std::iter::repeat_with(move || {
        if order.is_empty() {
            // All sixteen once before any comes again.
            let mut keyed: Vec<(u32, usize)> =
                (0_u32..).zip(MIX).map(|(i, n)| (rng.words([i, round, 0, PURPOSE])[0], n)).collect();
            keyed.sort_unstable();
            round += 1;
            order = keyed.into_iter().map(|(_, n)| n).collect();
        }
        order.pop().unwrap_or(1)
    });
    fill(tokens, next)
}

fn fill(tokens: usize, lengths: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut left = tokens;
    let mut out = Vec::new();
    for length in lengths {
        if left == 0 {
            break;
        }
        out.push(length.min(left));
        left -= length.min(left);
    }
    out
}

/// Random tokens, all of them predicted. A document of `n` computed tokens has one more, which is only predicted.
pub(super) fn examples(lengths: &[usize], vocab: usize, seed: u64) -> Vec<Example> {
    let rng = Philox::new(seed, 0);
    let token = |row: usize, t: usize| {
        let word = rng.words([(t / 4) as u32, row as u32, 1, PURPOSE])[t % 4];
        ((u64::from(word) * vocab as u64) >> 32) as u32
    };
    let example = |(row, &n): (usize, &usize)| Example {
        ids: (0..=n).map(|t| token(row, t)).collect(),
        trained: (0..=n).map(|t| t > 0).collect(),
        place: Place::line(row + 1),
    };
    lengths.iter().enumerate().map(example).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn lengths_fill_the_budget_and_average_what_they_should() {
        assert_eq!(MIX.iter().sum::<usize>(), 200 * MIX.len());
        assert_eq!(equal(10, 4), [4, 4, 2]);
        assert_eq!(equal(8, 4), [4, 4]);
        assert_eq!(equal(3, 9), [3]);
        let many = mix(32_000, 1);
        assert_eq!((many.iter().sum::<usize>(), many.len()), (32_000, 160));
        assert_ne!(many, mix(32_000, 2));
        let few = mix(1000, 1);
        let (last, whole) = few.split_last().unwrap();
        assert!(whole == &many[..whole.len()] && *last <= many[whole.len()], "{few:?}");
        assert_eq!(few.iter().sum::<usize>(), 1000);
    }

    #[test]
    fn every_computed_token_predicts_one() {
        let all = examples(&[5, 1], 7, 3);
        assert_eq!(all.iter().map(|e| e.ids.len()).collect::<Vec<_>>(), [6, 2]);
        assert_eq!(all.iter().map(Example::trained_tokens).collect::<Vec<_>>(), [5, 1]);
        let ids: Vec<u32> = examples(&[4000], 7, 3).remove(0).ids;
        assert!(
            (0..7).all(|id| ids.iter().filter(|&&i| i == id).count() > 400) && ids.iter().all(|&i| i < 7)
        );
    }
}
