//! How full packs get, from a count per length alone: a million rows take no more memory than a thousand.

use std::collections::BTreeMap;

use super::lengths::Counts;
use crate::pack::Utilisation;

/// What [`crate::utilisation`] gives for the same lengths; the budget is raised to the longest.
///
/// Documents of one length come one after the other, and the pack that took the last one is the fullest with room for
/// the next as long as there is room: so each length is dealt with at once, pack by pack of equal room.
pub(super) fn utilisation(lengths: &Counts, budget: usize) -> Option<Utilisation> {
    let longest = lengths.descending().next()?.0;
    let budget = budget.max(longest);
    // How many packs have so much room left.
    let mut open: BTreeMap<usize, usize> = BTreeMap::new();
    let (mut packs, mut tokens) = (0, 0);
    for (length, mut documents) in lengths.descending().filter(|(length, _)| *length > 0) {
        tokens += length * documents;
        while documents > 0 {
            let (room, alike) = match open.range(length..).next() {
                Some((&room, &alike)) => (room, alike),
                None => (budget, usize::MAX),
            };
            let each = room / length;
            let filled = (documents / each).min(alike);
            // The last of them may stay with fewer documents than fit.
            let rest = if filled < alike { documents - filled * each } else { 0 };
            let used = filled + usize::from(rest > 0);
            if alike == usize::MAX {
                packs += used;
            } else if alike == used {
                open.remove(&room);
            } else {
                open.insert(room, alike - used);
            }
            if filled > 0 {
                *open.entry(room - each * length).or_default() += filled;
            }
            if rest > 0 {
                *open.entry(room - rest * length).or_default() += 1;
            }
            documents -= filled * each + rest;
        }
    }
    Some(Utilisation { budget, packs, tokens })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counting_packs_agrees_with_making_them() {
        for salt in 0..300u64 {
            let hash = |i: u64| crate::sip::siphash24(salt, 3, &i.to_le_bytes()) as usize;
            let longest = 1 + hash(1 << 40) % 200;
            let lengths: Vec<usize> = (0..=salt % 150).map(|i| hash(i) % (longest + 1)).collect();
            let budget = lengths.iter().copied().max().unwrap_or(1).max(1 + hash(1 << 41) % 300);
            let mut counts = Counts::default();
            lengths.iter().for_each(|length| counts.add(*length));
            let made = crate::pack::utilisation(&lengths, budget).unwrap();
            assert_eq!(utilisation(&counts, budget), Some(made), "{lengths:?}");
        }
        assert_eq!(utilisation(&Counts::default(), 8), None);
    }
}
