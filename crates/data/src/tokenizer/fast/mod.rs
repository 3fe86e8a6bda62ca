//! The fast path: what `tokenizers` computes for the usual byte-pair tokenizers, id for id and offset for offset,
//! without its normalised strings, its regex engine and its allocations.

mod added;
mod bytes;
mod cache;
mod classes;
mod merge;
mod pieces;
mod recipe;
mod split;
mod vocab;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use tokenizers::Tokenizer;
use tokenizers::models::bpe::BPE;

use self::added::Added;
use self::bytes::ByteWords;
use self::cache::Scratch;
use self::merge::Merges;
use self::pieces::SpaceWords;
use self::recipe::{Post, Words};
use self::split::Splitter;
use super::Tokens;

/// Numbers the tokenizers of this process, to tell their words apart.
static NUMBER: AtomicU64 = AtomicU64::new(0);

#[derive(Debug)]
enum Scheme {
    Bytes(Box<ByteWords>),
    Spaces(Box<SpaceWords>),
}

/// A tokenizer of which every part is known.
#[derive(Debug)]
pub(super) struct Fast {
    number: u64,
    added: Added,
    scheme: Scheme,
    merges: Merges,
    post: Post,
    /// Leading and trailing white space of tokens that have any, where offsets are trimmed.
    blanks: HashMap<u32, (usize, usize)>,
}

impl Fast {
    /// `None` unless everything `tokenizer` does is known here. `json`: the file it was read from.
    pub(super) fn new(tokenizer: &Tokenizer, json: &[u8]) -> Option<Self> {
        let bpe = vocab::bpe(tokenizer)?;
        let added = Added::new(tokenizer)?;
        let post = recipe::post(tokenizer)?;
        let mut names = vocab::Names::default();
        let (scheme, merges) = match recipe::words(tokenizer)? {
            Words::ByteLevel { pattern } => {
                let splitter = match pattern {
                    Some(pattern) => Splitter::from_pattern(&pattern)?,
                    None => Splitter::gpt2()?,
                };
                let words = ByteWords::new(splitter, bpe, &mut names)?;
                let merges = vocab::merges(json, bpe, &mut names, |_| Some(()))?;
                (Scheme::Bytes(Box::new(words)), merges)
            }
            Words::Spaces { prefix, split } => {
                let mut words = SpaceWords::new(prefix, bpe, &mut names)?;
                let merges = vocab::merges(json, bpe, &mut names, |texts| words.see(texts))?;
                if split {
                    words.split_at_spaces();
                }
                (Scheme::Spaces(Box::new(words)), merges)
            }
        };
        let blanks = if post.trim.is_some() { blanks(tokenizer)? } else { HashMap::new() };
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Some(Self { number, added, scheme, merges, post, blanks })
    }

    /// Ids and offsets of `text` in place of what `out` holds. A special token whose span holds one of the positions
    /// `literal` (ascending) strictly inside stays text.
    pub(super) fn encode(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
        literal: &[usize],
        add_special_tokens: bool,
        out: &mut Tokens,
    ) {
        out.clear();
        let Some(bpe) = vocab::bpe(tokenizer) else { return };
        let (before, after): (&[u32], &[u32]) =
            if add_special_tokens { (&self.post.before, &self.post.after) } else { (&[], &[]) };
        // English has four bytes a token.
        let guess = text.len() / 3 + before.len() + after.len() + 4;
        out.ids.reserve(guess);
        out.offsets.reserve(guess);
        add_special(before, out);
        cache::with_scratch(self.number, |scratch| {
            let mut writer = Writer { fast: self, bpe, text, scratch, out };
            self.added.split(text, literal, |span, id| match id {
                Some(id) => {
                    writer.out.ids.push(id);
                    writer.out.offsets.push((span.start, span.end));
                }
                None => writer.piece(span),
            });
        });
        if let Some(keep_first) = self.post.trim {
            self.trim(keep_first, before.len(), out);
        }
        let (from, to) = (before.len(), out.ids.len());
        add_special(after, out);
        out.added.resize(out.ids.len(), true);
        out.added[from..to].fill(false);
    }

    /// Takes white space out of the offsets of the tokens from `first` on, as the reference counts it: in characters.
    fn trim(&self, keep_first: bool, first: usize, out: &mut Tokens) {
        for (i, (id, span)) in out.ids.iter().zip(&mut out.offsets).enumerate().skip(first) {
            let Some(&(mut leading, trailing)) = self.blanks.get(id) else { continue };
            if keep_first && leading == 1 && (i == first || span.0 == 0) {
                leading = 0;
            }
            span.0 = (span.0 + leading).min(span.1);
            if trailing > 0 && span.1 >= trailing {
                span.1 = (span.1 - trailing).max(span.0);
            }
        }
    }
}

fn add_special(ids: &[u32], out: &mut Tokens) {
    out.ids.extend(ids);
    out.offsets.resize(out.ids.len(), (0, 0));
}

/// Characters of white space around the tokens that have any. `None` when an id has two texts.
fn blanks(tokenizer: &Tokenizer) -> Option<HashMap<u32, (usize, usize)>> {
    let mut names = vocab::Names::default();
    let mut blanks = HashMap::new();
    for (text, id) in tokenizer.get_vocab(true) {
        names.claim(id, &text)?;
        let blank = |c: &char| c.is_whitespace() || *c == 'Ġ';
        let leading = text.chars().take_while(blank).count();
        let trailing = text.chars().rev().take_while(blank).count();
        if leading + trailing > 0 {
            blanks.insert(id, (leading, trailing));
        }
    }
    Some(blanks)
}

/// Writes the tokens of one text.
struct Writer<'a> {
    fast: &'a Fast,
    bpe: &'a BPE,
    text: &'a str,
    scratch: &'a mut Scratch,
    out: &'a mut Tokens,
}

impl Writer<'_> {
    /// Tokens of a stretch of text between added tokens.
    fn piece(&mut self, span: Range<usize>) {
        let (text, fast) = (self.text, self.fast);
        let piece = &text[span.clone()];
        match &fast.scheme {
            Scheme::Bytes(words) => {
                let mut at = 0;
                while at < piece.len() {
                    let end = words.splitter.word_end(piece, at);
                    self.word(&piece[at..end], span.start + at);
                    at = end;
                }
            }
            Scheme::Spaces(words) => {
                let mut at = 0;
                if words.prefixed(piece, span.start) {
                    at = words.word_end(piece, 0, true);
                    self.prefixed_word(&piece[..at], span.clone());
                }
                while at < piece.len() {
                    let end = words.word_end(piece, at, false);
                    self.word(&piece[at..end], span.start + at);
                    at = end;
                }
            }
        }
    }

    /// Tokens of a word at `start` of the text.
    #[inline]
    fn word(&mut self, word: &str, start: usize) {
        let slot = cache::Words::slot(word.as_bytes());
        if let Some(tokens) = slot.as_ref().and_then(|slot| self.scratch.words.get(slot)) {
            let mut at = start;
            for (id, len) in tokens {
                self.out.ids.push(id);
                self.out.offsets.push(whole_chars(self.text, at, at + len));
                at += len;
            }
            return;
        }
        self.merge(word, slot.as_ref());
        let mut at = start;
        for symbol in &self.scratch.symbols {
            let end = at + symbol.len as usize;
            self.out.ids.push(symbol.id);
            self.out.offsets.push(whole_chars(self.text, at, end));
            at = end;
        }
    }

    /// Tokens of a space that is not in the text and of `word` behind it, the start of the piece `span`. The space is
    /// said to stand where the first character stands.
    fn prefixed_word(&mut self, word: &str, span: Range<usize>) {
        let virtual_word = [" ", word].concat();
        self.merge(&virtual_word, None);
        let first = self.text[span.clone()].chars().next().map_or(0, char::len_utf8);
        let mut at = 0;
        for symbol in &self.scratch.symbols {
            let end = at + symbol.len as usize;
            let from = span.start + at.saturating_sub(1);
            let to = if end == 1 { span.start + first } else { span.start + end - 1 };
            self.out.ids.push(symbol.id);
            self.out.offsets.push(whole_chars(self.text, from, to));
            at = end;
        }
    }

    /// Leaves the tokens of `word` in the scratch's symbols.
    fn merge(&mut self, word: &str, slot: Option<&cache::Slot>) {
        let Scratch { words, symbols, merging, spelled, .. } = &mut *self.scratch;
        let done = match &self.fast.scheme {
            Scheme::Bytes(scheme) => scheme.spell(word, self.bpe, symbols, spelled),
            Scheme::Spaces(scheme) => {
                scheme.spell(word, self.bpe, symbols);
                false
            }
        };
        if !done {
            self.fast.merges.apply(symbols, merging);
        }
        if let Some(slot) = slot {
            words.put(slot, symbols);
        }
    }
}

/// The characters that `start..end` touches.
#[inline]
fn whole_chars(text: &str, mut start: usize, mut end: usize) -> (usize, usize) {
    while !text.is_char_boundary(start) {
        start -= 1;
    }
    while !text.is_char_boundary(end) {
        end += 1;
    }
    (start, end)
}
