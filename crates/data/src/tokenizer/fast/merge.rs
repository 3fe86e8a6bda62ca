//! Byte-pair merging: of all neighbouring pairs the one that comes first in the list of merges, the leftmost of equals.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

use super::cache::fold;

/// Words up to this many symbols are searched from end to end for the next merge; longer ones need a heap.
const SHORT: usize = 48;
/// No pair.
const NONE: u32 = u32::MAX;

/// A token in the making.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Symbol {
    /// Its id.
    pub(super) id: u32,
    /// Bytes of the word it covers; 0 once it is merged into its left neighbour.
    pub(super) len: u32,
}

/// Hashes one `u64`.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Folding(u64);

impl Hasher for Folding {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = fold(self.0 ^ value ^ 0x9E37_79B9_7F4A_7C15, 0xD1B5_4A32_D192_ED03);
    }
}

/// Builds [`Folding`] hashers.
pub(super) type Folded = BuildHasherDefault<Folding>;

/// Two numbers of 32 bits as one key.
#[inline]
pub(super) fn pair(a: u32, b: u32) -> u64 {
    u64::from(a) << 32 | u64::from(b)
}

/// Memory that merging works in.
#[derive(Debug, Default)]
pub(super) struct Workspace {
    /// `(rank, id)` of each symbol with its right neighbour.
    ranks: Vec<(u32, u32)>,
    heap: BinaryHeap<Reverse<(u32, u32)>>,
    previous: Vec<u32>,
    next: Vec<u32>,
}

/// Which pairs merge into what, and in which order.
#[derive(Debug)]
pub(super) struct Merges {
    pairs: HashMap<u64, (u32, u32), Folded>,
}

impl Merges {
    pub(super) fn with_capacity(merges: usize) -> Self {
        Self { pairs: HashMap::with_capacity_and_hasher(merges, Folded::default()) }
    }

    /// The pair `(a, b)` merges into `id`, after all pairs of a lower `rank`.
    pub(super) fn insert(&mut self, a: u32, b: u32, rank: u32, id: u32) {
        self.pairs.insert(pair(a, b), (rank, id));
    }

    #[inline]
    fn get(&self, a: Symbol, b: Symbol) -> (u32, u32) {
        self.pairs.get(&pair(a.id, b.id)).copied().unwrap_or((NONE, 0))
    }

    /// Merges `symbols` until no pair is left that merges.
    pub(super) fn apply(&self, symbols: &mut Vec<Symbol>, work: &mut Workspace) {
        if symbols.len() <= SHORT {
            self.apply_short(symbols, &mut work.ranks);
        } else {
            self.apply_long(symbols, work);
        }
    }

    fn apply_short(&self, symbols: &mut Vec<Symbol>, ranks: &mut Vec<(u32, u32)>) {
        ranks.clear();
        ranks.extend(symbols.windows(2).map(|w| self.get(w[0], w[1])));
        loop {
            let (mut best, mut at) = (NONE, 0);
            for (i, (rank, _)) in ranks.iter().enumerate() {
                if *rank < best {
                    (best, at) = (*rank, i);
                }
            }
            if best == NONE {
                return;
            }
            symbols[at] = Symbol { id: ranks[at].1, len: symbols[at].len + symbols[at + 1].len };
            symbols.remove(at + 1);
            ranks.remove(at);
            if at < ranks.len() {
                ranks[at] = self.get(symbols[at], symbols[at + 1]);
            }
            if at > 0 {
                ranks[at - 1] = self.get(symbols[at - 1], symbols[at]);
            }
        }
    }

    fn apply_long(&self, symbols: &mut Vec<Symbol>, work: &mut Workspace) {
        let Workspace { heap, previous, next, .. } = work;
        let count = symbols.len();
        heap.clear();
        previous.clear();
        previous.extend((0..count as u32).map(|i| i.wrapping_sub(1)));
        next.clear();
        next.extend(1..=count as u32);
        for (i, w) in symbols.windows(2).enumerate() {
            let (rank, _) = self.get(w[0], w[1]);
            if rank != NONE {
                heap.push(Reverse((rank, i as u32)));
            }
        }
        while let Some(Reverse((rank, at))) = heap.pop() {
            let left = at as usize;
            let right = next[left] as usize;
            if symbols[left].len == 0 || right >= count {
                continue;
            }
            let (now, id) = self.get(symbols[left], symbols[right]);
            if now != rank {
                // Another merge took one of the two.
                continue;
            }
            symbols[left] = Symbol { id, len: symbols[left].len + symbols[right].len };
            symbols[right].len = 0;
            let after = next[right];
            next[left] = after;
            if let Some(back) = previous.get_mut(after as usize) {
                *back = at;
                let (rank, _) = self.get(symbols[left], symbols[after as usize]);
                if rank != NONE {
                    heap.push(Reverse((rank, at)));
                }
            }
            let before = previous[left];
            if let Some(symbol) = symbols.get(before as usize) {
                let (rank, _) = self.get(*symbol, symbols[left]);
                if rank != NONE {
                    heap.push(Reverse((rank, before)));
                }
            }
        }
        symbols.retain(|s| s.len != 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, word for word.
    fn slow(merges: &Merges, symbols: &[u32]) -> Vec<u32> {
        let mut all = symbols.to_vec();
        loop {
            let ranked = (1..all.len()).filter_map(|i| {
                let (rank, id) = *merges.pairs.get(&pair(all[i - 1], all[i]))?;
                Some((rank, i, id))
            });
            let Some((_, i, id)) = ranked.min() else { return all };
            all.splice(i - 1..=i, [id]);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]
        #[test]
        fn short_and_long_words_merge_as_defined(
            list in prop::collection::vec((0_u32..8, 0_u32..8), 0..40),
            word in prop::collection::vec(0_u32..4, 0..60),
        ) {
            let mut merges = Merges::with_capacity(0);
            for (rank, (a, b)) in list.iter().enumerate() {
                // Ids stand for texts: no two pairs may share one.
                merges.insert(*a, *b, rank as u32, 4 + rank as u32);
            }
            let symbols: Vec<Symbol> = word.iter().map(|id| Symbol { id: *id, len: 1 }).collect();
            let expected = slow(&merges, &word);
            let mut work = Workspace::default();
            for long in [false, true] {
                let mut merged = symbols.clone();
                if long {
                    merges.apply_long(&mut merged, &mut work);
                } else {
                    merges.apply_short(&mut merged, &mut work.ranks);
                }
                prop_assert_eq!(merged.iter().map(|s| s.id).collect::<Vec<_>>(), expected.clone());
                prop_assert_eq!(merged.iter().map(|s| s.len as usize).sum::<usize>(), word.len());
            }
        }
    }
}
