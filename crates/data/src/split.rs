//! Train and validation halves by content hash.

use crate::error::Error;
use crate::sip::siphash24;

/// Second half of the key that ranks groups; the first is the seed.
const RANK_KEY: u64 = 0x7475_6e65_736d_6974;

/// Which rows go where: indices into the list that was split, each half in its original order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// Rows to train on.
    pub train: Vec<usize>,
    /// Rows held out.
    pub validation: Vec<usize>,
}

/// Splits rows by the fingerprint of their content ([`crate::Row::fingerprint`]).
///
/// Equal rows form one group and stay together. The groups are ranked by a hash keyed with `seed`; the first
/// `round(fraction * groups)` of them are the validation half: at least one and at most all but one when there are
/// two groups or more and `fraction > 0`. The order of the rows does not matter.
///
/// # Errors
/// [`Error::Fraction`] unless `0 <= fraction < 1`.
pub fn split(fingerprints: &[u128], fraction: f64, seed: u64) -> Result<Split, Error> {
    if !(0.0..1.0).contains(&fraction) {
        return Err(Error::Fraction { fraction });
    }
    // Fewer than two groups, or none to hold out: nothing is held out.
    let parts =
        if fraction > 0.0 { split_parts(fingerprints, &[1.0 - fraction, fraction], seed) } else { None };
    let held = |row: &usize| parts.as_ref().is_some_and(|parts| parts[*row] == 1);
    let (validation, train) = (0..fingerprints.len()).partition(held);
    Ok(Split { train, validation })
}

/// Splits into several parts: the part of each row. Equal fingerprints form one group, and the groups are ranked as in
/// [`split`]; each part takes its share of them, the last part the first ranks. `weights` add up to 1. None when
/// there are fewer groups than parts.
pub(crate) fn split_parts(fingerprints: &[u128], weights: &[f64], seed: u64) -> Option<Vec<usize>> {
    let rank = |print: u128| (siphash24(seed, RANK_KEY, &print.to_le_bytes()), print);
    let mut groups: Vec<(u64, u128)> = fingerprints.iter().map(|&print| rank(print)).collect();
    groups.sort_unstable();
    groups.dedup();
    let (count, parts) = (groups.len(), weights.len());
    if count < parts || parts == 0 {
        return None;
    }
    // ends[i]: the ranks below it belong to the part i from the back, or to those behind it.
    let (mut ends, mut share, mut end) = (Vec::with_capacity(parts), 0.0, 0);
    for (place, weight) in weights.iter().rev().enumerate() {
        share += weight;
        let wanted = (share * count as f64).round() as usize;
        end = if place + 1 == parts { count } else { wanted.clamp(end + 1, count - (parts - place - 1)) };
        ends.push(end);
    }
    let part = |print: u128| {
        let place = groups.binary_search(&rank(print)).unwrap_or_default();
        parts - 1 - ends.partition_point(|&end| end <= place)
    };
    Some(fingerprints.iter().map(|&print| part(print)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pseudo-random fingerprints with many repeats.
    fn prints(n: usize, distinct: u64, salt: u64) -> Vec<u128> {
        (0..n as u64)
            .map(|i| {
                let pick = siphash24(salt, 1, &i.to_le_bytes()) % distinct;
                u128::from(siphash24(2, 3, &pick.to_le_bytes()))
            })
            .collect()
    }

    #[test]
    fn every_row_lands_once_and_duplicates_stay_together() {
        for salt in 0..200 {
            let all = prints(1 + salt as usize % 61, 1 + salt % 40, salt);
            for fraction in [0.0, 0.05, 0.2, 0.5, 0.99] {
                let s = split(&all, fraction, salt).unwrap();
                let mut rows = [s.train.clone(), s.validation.clone()].concat();
                rows.sort_unstable();
                assert_eq!(rows, (0..all.len()).collect::<Vec<_>>());
                assert!(s.train.iter().all(|t| s.validation.iter().all(|v| all[*t] != all[*v])));
                assert!(!s.train.is_empty());
            }
        }
    }

    #[test]
    fn the_order_of_the_rows_does_not_matter_and_the_seed_does() {
        let all = prints(100, 1000, 7);
        let held = |list: &[u128], seed| {
            let s = split(list, 0.2, seed).unwrap();
            let mut v: Vec<u128> = s.validation.iter().map(|&i| list[i]).collect();
            v.sort_unstable();
            v
        };
        let mut reversed = all.clone();
        reversed.reverse();
        reversed.rotate_left(13);
        assert_eq!(held(&all, 5), held(&reversed, 5));
        assert_ne!(held(&all, 5), held(&all, 6));
    }

    #[test]
    fn validation_takes_the_rounded_fraction_of_the_groups() {
        let distinct: Vec<u128> = (0..300).collect();
        assert_eq!(split(&distinct, 0.2, 0).unwrap().validation.len(), 60);
        assert_eq!(split(&distinct[..2], 0.01, 0).unwrap().validation.len(), 1);
        assert_eq!(split(&distinct[..2], 0.99, 0).unwrap().validation.len(), 1);
        assert_eq!(split(&distinct[..1], 0.5, 0).unwrap().validation.len(), 0);
        assert_eq!(split(&[], 0.5, 0).unwrap(), Split { train: vec![], validation: vec![] });
        assert_eq!(split(&distinct, 0.0, 0).unwrap().validation.len(), 0);
    }

    #[test]
    fn two_parts_are_the_two_halves_and_no_part_is_empty() {
        for salt in 0..200 {
            let all = prints(2 + salt as usize % 61, 2 + salt % 40, salt);
            let Some(parts) = split_parts(&all, &[0.8, 0.2], salt) else { continue };
            let halves = split(&all, 0.2, salt).unwrap();
            let of = |part| (0..all.len()).filter(|&i| parts[i] == part).collect::<Vec<_>>();
            assert_eq!((of(0), of(1)), (halves.train, halves.validation));
        }
        let distinct: Vec<u128> = (0..100).collect();
        let sizes = |list: &[u128], weights: &[f64]| {
            let parts = split_parts(list, weights, 3).unwrap();
            (0..weights.len()).map(|part| parts.iter().filter(|&&p| p == part).count()).collect::<Vec<_>>()
        };
        assert_eq!(sizes(&distinct, &[0.7, 0.2, 0.1]), [70, 20, 10]);
        assert_eq!(sizes(&distinct[..3], &[0.98, 0.01, 0.01]), [1, 1, 1]);
        assert_eq!(sizes(&distinct[..4], &[0.001, 0.001, 0.998]), [1, 1, 2]);
        assert_eq!(split_parts(&[7, 7, 8], &[0.4, 0.3, 0.3], 0), None);
    }

    #[test]
    fn a_fraction_out_of_range_is_refused() {
        for fraction in [1.0, -0.1, f64::NAN, 20.0] {
            assert!(split(&[1, 2], fraction, 0).is_err());
        }
        assert_eq!(
            split(&[1, 2], 20.0, 0).unwrap_err().to_string(),
            "validation fraction 20 is out of range; use a number from 0 up to, but not including, 1"
        );
    }
}
