//! Train and validation halves by content hash.

use std::collections::BTreeMap;

use crate::error::Error;
use crate::sip::siphash24;

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
    let mut groups: BTreeMap<(u64, u128), Vec<usize>> = BTreeMap::new();
    for (row, &print) in fingerprints.iter().enumerate() {
        let rank = siphash24(seed, 0x7475_6e65_736d_6974, &print.to_le_bytes());
        groups.entry((rank, print)).or_default().push(row);
    }
    let count = groups.len();
    let held_out = if fraction > 0.0 && count >= 2 {
        ((fraction * count as f64).round() as usize).clamp(1, count - 1)
    } else {
        0
    };
    let mut split = Split { train: Vec::new(), validation: Vec::new() };
    for (place, rows) in groups.into_values().enumerate() {
        if place < held_out { &mut split.validation } else { &mut split.train }.extend(rows);
    }
    split.train.sort_unstable();
    split.validation.sort_unstable();
    Ok(split)
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
