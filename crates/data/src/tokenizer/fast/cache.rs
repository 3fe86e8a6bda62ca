//! What one thread remembers between texts: the tokens of short words, and memory to work in.

use std::cell::Cell;

use super::merge::{Symbol, Workspace};

/// Bytes of the longest word that is remembered.
const WORD: usize = 32;
/// Most tokens of a word that is remembered.
const TOKENS: usize = 6;
/// Words that are remembered: a power of two. A word takes the place of another with the same hash.
const SLOTS: usize = 1 << 15;
/// Tokenizers that one thread keeps words of.
const KEPT: usize = 4;

/// A word and its tokens, one line of a processor's cache.
#[derive(Clone, Copy)]
struct Entry {
    word: [u8; WORD],
    ids: [u32; TOKENS],
    lens: [u8; TOKENS],
    len: u8,
    count: u8,
}

const VACANT: Entry = Entry { word: [0; WORD], ids: [0; TOKENS], lens: [0; TOKENS], len: 0, count: 0 };

/// A remembered word's place, known before its tokens are.
pub(super) struct Slot {
    word: [u8; WORD],
    at: usize,
    len: u8,
}

/// The tokens of words, by the words' bytes.
pub(super) struct Words {
    entries: Vec<Entry>,
}

impl Words {
    fn new() -> Self {
        Self { entries: vec![VACANT; SLOTS] }
    }

    /// `None` for a word that is too long to be remembered.
    #[inline]
    pub(super) fn slot(word: &[u8]) -> Option<Slot> {
        if word.len() > WORD {
            return None;
        }
        let mut padded = [0; WORD];
        padded[..word.len()].copy_from_slice(word);
        let part = |i: usize| {
            let mut eight = [0; 8];
            eight.copy_from_slice(&padded[8 * i..8 * i + 8]);
            u64::from_le_bytes(eight)
        };
        let front = fold(part(0) ^ 0x9E37_79B9_7F4A_7C15, part(1) ^ 0xD1B5_4A32_D192_ED03);
        let back = fold(part(2) ^ 0x8CB9_2BA7_2F3D_8DD7, part(3) ^ 0xAAAA_5555_A5A5_5A5B ^ word.len() as u64);
        let at = (front ^ back.rotate_left(23)) as usize % SLOTS;
        Some(Slot { word: padded, at, len: word.len() as u8 })
    }

    /// The ids and lengths in bytes of the word's tokens, if they are known.
    #[inline]
    pub(super) fn get(&self, slot: &Slot) -> Option<impl Iterator<Item = (u32, usize)> + '_> {
        let entry = &self.entries[slot.at];
        if entry.len != slot.len || entry.word != slot.word {
            return None;
        }
        let count = usize::from(entry.count);
        let lens = entry.lens.iter().map(|len| usize::from(*len));
        Some(entry.ids.iter().copied().zip(lens).take(count))
    }

    /// Remembers a word unless it has too many tokens.
    pub(super) fn put(&mut self, slot: &Slot, symbols: &[Symbol]) {
        if symbols.len() > TOKENS {
            return;
        }
        let mut entry = Entry { word: slot.word, len: slot.len, count: symbols.len() as u8, ..VACANT };
        for (i, symbol) in symbols.iter().enumerate() {
            entry.ids[i] = symbol.id;
            entry.lens[i] = symbol.len as u8;
        }
        self.entries[slot.at] = entry;
    }
}

/// Both halves of a product.
#[inline]
pub(super) fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// One thread's memory for one tokenizer.
pub(super) struct Scratch {
    owner: u64,
    pub(super) words: Words,
    pub(super) symbols: Vec<Symbol>,
    pub(super) merging: Workspace,
    /// A word in another spelling.
    pub(super) spelled: String,
}

thread_local! {
    /// Last used at the end.
    static POOL: Cell<Vec<Scratch>> = const { Cell::new(Vec::new()) };
}

/// Runs `work` with this thread's memory for the tokenizer numbered `owner`.
pub(super) fn with_scratch(owner: u64, work: impl FnOnce(&mut Scratch)) {
    let mut pool = POOL.take();
    let mut scratch = if let Some(place) = pool.iter().position(|s| s.owner == owner) {
        pool.remove(place)
    } else {
        if pool.len() == KEPT {
            pool.remove(0);
        }
        let merging = Workspace::default();
        Scratch { owner, words: Words::new(), symbols: Vec::new(), merging, spelled: String::new() }
    };
    work(&mut scratch);
    pool.push(scratch);
    POOL.set(pool);
}
