//! Byte-level tokens: a word is its bytes, each written as one character of a fixed alphabet.

use tokenizers::Model;
use tokenizers::models::bpe::BPE;

use super::merge::Symbol;
use super::split::Splitter;
use super::vocab::Names;

/// The words of byte-level tokenizers.
#[derive(Debug)]
pub(super) struct ByteWords {
    pub(super) splitter: Splitter,
    /// Ids of the single bytes.
    ids: [u32; 256],
    alphabet: [char; 256],
    /// A word that is a token as a whole stays one, whatever the merges say.
    whole: bool,
}

impl ByteWords {
    /// `None` when a byte is not in the vocabulary.
    pub(super) fn new(splitter: Splitter, bpe: &BPE, names: &mut Names) -> Option<Self> {
        let alphabet = alphabet();
        let mut ids = [0; 256];
        for (id, c) in ids.iter_mut().zip(&alphabet) {
            let text = c.encode_utf8(&mut [0; 4]).to_owned();
            *id = names.claim(bpe.token_to_id(&text)?, &text)?;
        }
        Some(Self { splitter, ids, alphabet, whole: bpe.ignore_merges })
    }

    /// Puts the symbols of `word` before merging into `symbols`. `true`: there is nothing to merge.
    pub(super) fn spell(
        &self,
        word: &str,
        bpe: &BPE,
        symbols: &mut Vec<Symbol>,
        spelled: &mut String,
    ) -> bool {
        symbols.clear();
        if self.whole {
            spelled.clear();
            spelled.extend(word.bytes().map(|b| self.alphabet[usize::from(b)]));
            if let Some(id) = bpe.token_to_id(spelled) {
                symbols.push(Symbol { id, len: word.len() as u32 });
                return true;
            }
        }
        symbols.extend(word.bytes().map(|b| Symbol { id: self.ids[usize::from(b)], len: 1 }));
        false
    }
}

/// GPT-2's alphabet: printable Latin-1 stands for itself, the other bytes for the characters from U+0100 on.
fn alphabet() -> [char; 256] {
    let mut next = 0x100_u32;
    std::array::from_fn(|byte| {
        let byte = byte as u8;
        if matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF) {
            return char::from(byte);
        }
        next += 1;
        char::from_u32(next - 1).unwrap_or_default()
    })
}
