//! SentencePiece tokens: a text is its characters, spaces written as `▁`, and any neighbours may merge. So that words
//! can be remembered, the text is cut wherever no merge of the vocabulary could ever join the two sides: such a cut
//! changes nothing.

use std::collections::HashSet;

use tokenizers::Model;
use tokenizers::models::bpe::BPE;

use super::merge::{Folded, Symbol, pair};
use super::recipe::{META, Prefix};
use super::vocab::Names;

/// How a space is known: the space itself and `▁` are one.
const SPACE: u32 = ' ' as u32;
/// No id.
const NONE: u32 = u32::MAX;

/// The words of SentencePiece tokenizers.
#[derive(Debug)]
pub(super) struct SpaceWords {
    pub(super) prefix: Prefix,
    /// Whether a merge joins two ASCII characters, at `first * 128 + second`.
    ascii: Vec<bool>,
    /// Other characters that a merge joins.
    wide: HashSet<u64, Folded>,
    /// Ids of ASCII characters, or [`NONE`].
    chars: [u32; 128],
    /// Ids of the single bytes, for characters without an id.
    bytes: [u32; 256],
}

impl SpaceWords {
    /// `None` when a character could be left without any id.
    pub(super) fn new(prefix: Prefix, bpe: &BPE, names: &mut Names) -> Option<Self> {
        if !bpe.byte_fallback || bpe.ignore_merges {
            return None;
        }
        let mut bytes = [0; 256];
        for (byte, id) in bytes.iter_mut().enumerate() {
            let text = format!("<0x{byte:02X}>");
            *id = names.claim(bpe.token_to_id(&text)?, &text)?;
        }
        let mut this = Self {
            prefix,
            ascii: vec![false; 128 * 128],
            wide: HashSet::default(),
            chars: [NONE; 128],
            bytes,
        };
        for c in '\0'..'\u{80}' {
            let spelled = if c == ' ' { META } else { c };
            let text = spelled.encode_utf8(&mut [0; 4]).to_owned();
            if let Some(id) = bpe.token_to_id(&text) {
                this.chars[c as usize] = names.claim(id, &text)?;
            }
        }
        // Without an id of its own a space would have to be known by its bytes.
        (this.chars[SPACE as usize] != NONE).then_some(this)
    }

    /// Notes that a merge joins two texts. `None` for one of single bytes: they are not known by their text.
    pub(super) fn see(&mut self, texts: [(&str, u32); 2]) -> Option<()> {
        let [(a, left), (b, right)] = texts;
        let single = |text: &str, id: u32| text.starts_with("<0x") && self.bytes.contains(&id);
        if single(a, left) || single(b, right) {
            return None;
        }
        let (before, after) = (number(a.chars().next_back()?), number(b.chars().next()?));
        if before < 128 && after < 128 {
            self.ascii[(before * 128 + after) as usize] = true;
        } else {
            self.wide.insert(pair(before, after));
        }
        Some(())
    }

    /// From now on every space starts a word.
    pub(super) fn split_at_spaces(&mut self) {
        self.ascii.iter_mut().skip(SPACE as usize).step_by(128).for_each(|joined| *joined = false);
        self.wide.retain(|key| *key as u32 != SPACE);
    }

    /// Whether `piece`, which starts at `at` of the text, gets a space in front.
    pub(super) fn prefixed(&self, piece: &str, at: usize) -> bool {
        let bare = !piece.starts_with([' ', META]);
        match self.prefix {
            Prefix::All => true,
            Prefix::Always => bare,
            Prefix::First => bare && at == 0,
            Prefix::Never => false,
        }
    }

    /// Where the word ends that goes on at `at` behind a space, or starts there.
    #[inline]
    pub(super) fn word_end(&self, piece: &str, mut at: usize, behind_space: bool) -> usize {
        let bytes = piece.as_bytes();
        let mut before = if behind_space { SPACE } else { NONE };
        while let Some(&byte) = bytes.get(at) {
            let (this, next) = if byte < 128 { (u32::from(byte), at + 1) } else { wide_char(piece, at) };
            let joined = if before < 128 && this < 128 {
                self.ascii[(before * 128 + this) as usize]
            } else {
                before == NONE || self.wide.contains(&pair(before, this))
            };
            if !joined {
                return at;
            }
            (before, at) = (this, next);
        }
        at
    }

    /// Puts the symbols of `word` before merging into `symbols`.
    pub(super) fn spell(&self, word: &str, bpe: &BPE, symbols: &mut Vec<Symbol>) {
        symbols.clear();
        for c in word.chars() {
            let mut text = [0; 4];
            let text = c.encode_utf8(&mut text);
            let id = match self.chars.get(c as usize) {
                Some(&id) => Some(id).filter(|id| *id != NONE),
                None => bpe.token_to_id(text),
            };
            if let Some(id) = id {
                symbols.push(Symbol { id, len: text.len() as u32 });
            } else {
                symbols.extend(text.bytes().map(|b| Symbol { id: self.bytes[usize::from(b)], len: 1 }));
            }
        }
    }
}

fn number(c: char) -> u32 {
    if c == META { SPACE } else { c as u32 }
}

fn wide_char(piece: &str, at: usize) -> (u32, usize) {
    let c = piece.get(at..).and_then(|rest| rest.chars().next()).unwrap_or_default();
    (number(c), at + c.len_utf8().max(1))
}
