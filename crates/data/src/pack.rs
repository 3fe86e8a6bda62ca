//! Packing: whole documents into as few sequences of a fixed token budget as best-fit decreasing gives.
//!
//! Documents that share a pack never see each other: each keeps its own positions, and the first token of each is no
//! target. So packing changes speed and memory, never the result.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// How full the packs are.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Utilisation {
    /// Tokens that a pack may hold.
    pub budget: usize,
    /// Packs.
    pub packs: usize,
    /// Tokens in them.
    pub tokens: usize,
}

impl Utilisation {
    /// Share of the packs' room that holds tokens.
    pub fn share(&self) -> f64 {
        if self.packs == 0 { 0.0 } else { self.tokens as f64 / (self.packs as f64 * self.budget as f64) }
    }
}

/// Packs documents of these lengths: each document, the longest first, goes into the fullest pack that still has room
/// for it (best-fit decreasing; Johnson, 1973). Documents of equal length keep their order, and of equally full packs
/// the one opened first is taken. Returns the packs as numbers of documents; empty documents are in none.
///
/// # Errors
/// [`Error::TooLongToPack`]: a document is never cut.
pub fn pack(lengths: &[usize], budget: usize) -> Result<Vec<Vec<usize>>, Error> {
    let mut order: Vec<usize> = (0..lengths.len()).filter(|&i| lengths[i] > 0).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(lengths[i]));
    let mut packs: Vec<Vec<usize>> = Vec::new();
    // Packs by their free room, each room's in the order they came to it.
    let mut open: BTreeMap<usize, std::collections::BTreeSet<usize>> = BTreeMap::new();
    for document in order {
        let tokens = lengths[document];
        if tokens > budget {
            return Err(Error::TooLongToPack { tokens, budget });
        }
        let found = open.range(tokens..).next().and_then(|(room, at)| Some((*room, *at.first()?)));
        let (room, at) = if let Some((room, at)) = found {
            if let Some(same) = open.get_mut(&room) {
                same.remove(&at);
                if same.is_empty() {
                    open.remove(&room);
                }
            }
            (room, at)
        } else {
            packs.push(Vec::new());
            (budget, packs.len() - 1)
        };
        packs[at].push(document);
        if room > tokens {
            open.entry(room - tokens).or_default().insert(at);
        }
    }
    Ok(packs)
}

/// How full [`pack`] gets them, without keeping the packs.
///
/// # Errors
/// [`Error::TooLongToPack`].
pub fn utilisation(lengths: &[usize], budget: usize) -> Result<Utilisation, Error> {
    let packs = pack(lengths, budget)?.len();
    Ok(Utilisation { budget, packs, tokens: lengths.iter().sum() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packs these documents and writes each pack's tokens one behind the other.
    fn packed(documents: &[&[u32]], budget: usize) -> (Vec<Vec<u32>>, Vec<Vec<usize>>) {
        let lengths: Vec<usize> = documents.iter().map(|d| d.len()).collect();
        let packs = pack(&lengths, budget).unwrap();
        let tokens = packs.iter().map(|p| p.iter().flat_map(|&d| documents[d]).copied().collect());
        (tokens.collect(), packs.iter().map(|p| p.iter().map(|&d| lengths[d]).collect()).collect())
    }

    /// The vectors that TRL publishes for its `bfd` strategy. Where they cut a document, the cut is made here: what is
    /// over-long is decided before packing.
    #[test]
    fn packs_are_those_of_trl() {
        let (tokens, lengths) = packed(&[&[1, 2, 3], &[4, 5, 6, 7], &[8]], 4);
        assert_eq!(tokens, [vec![4, 5, 6, 7], vec![1, 2, 3, 8]]);
        assert_eq!(lengths, [vec![4], vec![3, 1]]);
        let (tokens, lengths) = packed(&[&[1, 2, 3, 4], &[5], &[6, 7], &[8, 9, 10, 11], &[12]], 4);
        assert_eq!(tokens, [vec![1, 2, 3, 4], vec![8, 9, 10, 11], vec![6, 7, 5, 12]]);
        assert_eq!(lengths, [vec![4], vec![4], vec![2, 1, 1]]);
        let (tokens, _) = packed(&[&[1, 2, 3, 4], &[6, 7], &[8, 9, 10, 11], &[12]], 4);
        assert_eq!(tokens, [vec![1, 2, 3, 4], vec![8, 9, 10, 11], vec![6, 7, 12]]);
        let (tokens, _) = packed(&[&[1, 2, 3, 4, 5], &[6], &[7, 8, 9, 10], &[11, 12, 13]], 5);
        assert_eq!(tokens, [vec![1, 2, 3, 4, 5], vec![7, 8, 9, 10, 6], vec![11, 12, 13]]);
        let (tokens, _) = packed(&[&[1, 2], &[], &[3, 4, 5], &[], &[6]], 4);
        assert_eq!(tokens, [vec![3, 4, 5, 6], vec![1, 2]]);
    }

    #[test]
    fn every_document_is_packed_once_and_no_pack_overflows() {
        for salt in 0..50u64 {
            let lengths: Vec<usize> = (0..200u64)
                .map(|i| (crate::sip::siphash24(salt, 1, &i.to_le_bytes()) % 100) as usize)
                .collect();
            let packs = pack(&lengths, 128).unwrap();
            let mut seen: Vec<usize> = packs.iter().flatten().copied().collect();
            seen.sort_unstable();
            let all: Vec<usize> = (0..200).filter(|&i| lengths[i] > 0).collect();
            assert_eq!(seen, all);
            assert!(packs.iter().all(|p| p.iter().map(|&d| lengths[d]).sum::<usize>() <= 128));
            let used = utilisation(&lengths, 128).unwrap();
            assert_eq!((used.packs, used.tokens), (packs.len(), lengths.iter().sum()));
            assert!(used.share() > 0.9, "{}", used.share());
        }
    }

    #[test]
    fn a_document_is_never_cut() {
        assert!(matches!(pack(&[3, 9], 8), Err(Error::TooLongToPack { tokens: 9, budget: 8 })));
        assert_eq!(pack(&[], 8).unwrap(), Vec::<Vec<usize>>::new());
    }
}
