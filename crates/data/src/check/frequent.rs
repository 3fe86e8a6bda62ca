//! The most frequent of many texts, in bounded memory.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::sip::siphash24;
use crate::source::Place;

/// Texts counted at once.
const COUNTERS: usize = 1 << 17;
/// Characters of the text that are kept to show it.
const SHOWN: usize = 200;

/// The text that most rows share.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Repeated {
    /// Its beginning.
    pub text: String,
    /// Rows that have it. With more than 131,072 different texts a few may be missing: one in 131,072 of all rows.
    pub rows: usize,
    /// Share of all rows.
    pub share: f64,
    /// One of them.
    pub place: Place,
}

/// Counts texts. With more different ones than counters, every counter is lowered by one and those at zero make room
/// (Misra and Gries, 1982): the count of a text is then too low by at most the rows per counter, never too high.
#[derive(Debug, Default)]
pub(super) struct Frequent {
    counts: HashMap<u64, u32>,
    leader: Option<Leader>,
    rows: usize,
}

#[derive(Debug)]
struct Leader {
    hash: u64,
    count: u32,
    text: String,
    place: Place,
}

impl Frequent {
    pub(super) fn add(&mut self, text: &str, place: Place) {
        self.rows += 1;
        let hash = siphash24(0x636f_6d70_6c65_7469, 0x6f6e, text.as_bytes());
        if self.counts.len() >= COUNTERS && !self.counts.contains_key(&hash) {
            self.lower();
            return;
        }
        let count = self.counts.entry(hash).or_default();
        *count += 1;
        match &mut self.leader {
            Some(leader) if leader.hash == hash => leader.count = *count,
            Some(leader) if leader.count >= *count => {}
            leader => {
                let text = text.chars().take(SHOWN).collect();
                *leader = Some(Leader { hash, count: *count, text, place });
            }
        }
    }

    fn lower(&mut self) {
        self.counts.retain(|_, count| {
            *count -= 1;
            *count > 0
        });
        if let Some(leader) = &mut self.leader {
            leader.count -= 1;
        }
        self.leader.take_if(|leader| leader.count == 0);
    }

    pub(super) fn finish(self) -> Option<Repeated> {
        let Leader { count, text, place, .. } = self.leader?;
        let rows = count as usize;
        Some(Repeated { text, rows, share: rows as f64 / self.rows as f64, place })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_frequent_text_is_found_among_more_than_are_counted() {
        let mut frequent = Frequent::default();
        let rows = 3 * COUNTERS;
        let mut meant = 0;
        for i in 0..rows {
            let place = Place { file: 0, number: i as u64 + 1 };
            if i % 10 == 3 {
                meant += 1;
                frequent.add("I do not know.", place);
            } else {
                frequent.add(&i.to_string(), place);
            }
        }
        assert!(frequent.counts.len() <= COUNTERS);
        let found = frequent.finish().unwrap();
        assert_eq!(found.text, "I do not know.");
        assert!(found.rows <= meant && found.rows >= meant - 3, "{} of {meant}", found.rows);
        assert_eq!(found.place.number % 10, 4);
    }

    #[test]
    fn few_texts_are_counted_exactly() {
        let mut frequent = Frequent::default();
        for (i, text) in ["a", "b", "a", "c", "a"].into_iter().enumerate() {
            frequent.add(text, Place { file: 0, number: i as u64 });
        }
        let found = frequent.finish().unwrap();
        assert_eq!((found.text.as_str(), found.rows, found.share), ("a", 3, 0.6));
        assert_eq!(Frequent::default().finish(), None);
    }
}
