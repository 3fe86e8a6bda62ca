//! What is trained in a row, piece by piece, from the very ids and mask that training sees.

use serde::{Deserialize, Serialize};

use crate::dataset::{Fate, Prepared};
use crate::error::Error;
use crate::source::Place;
use crate::tokenizer::TextTokenizer;

/// A row as the model sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaskPreview {
    /// Where the row stands.
    pub place: Place,
    /// Tokens.
    pub tokens: usize,
    /// Those that count in the loss.
    pub trained_tokens: usize,
    /// Whether the last token is an EOS that stands in no text of the row or its template, but was appended.
    pub eos_appended: bool,
    /// Tokens that the prompt lost at its beginning to fit the limit.
    pub cut_tokens: usize,
    /// The whole text in order: put together, the pieces are what the ids decode to.
    pub pieces: Vec<Piece>,
}

/// The text of one token, or of several that hold a character together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Its text; the name of a control token.
    pub text: String,
    /// How many tokens.
    pub tokens: usize,
    /// Whether it counts in the loss.
    pub trained: bool,
    /// Whether it is a control token, which no text of the row can be taken for.
    pub control: bool,
}

impl MaskPreview {
    /// The preview of a row.
    ///
    /// # Errors
    /// [`Error::Decode`].
    pub fn new(row: &Prepared, tokenizer: &TextTokenizer) -> Result<Self, Error> {
        let example = &row.encoded.example;
        Ok(Self {
            place: example.place,
            tokens: example.ids.len(),
            trained_tokens: example.trained_tokens(),
            eos_appended: row.encoded.eos_appended,
            cut_tokens: if let Fate::Truncated(cut) = row.fate { cut } else { 0 },
            pieces: pieces(&example.ids, &example.trained, tokenizer)?,
        })
    }

    /// Neighbouring pieces that are trained, or not, together; control tokens too.
    pub fn spans(&self) -> Vec<&[Piece]> {
        self.pieces.chunk_by(|a, b| a.trained == b.trained).collect()
    }
}

fn pieces(ids: &[u32], trained: &[bool], tokenizer: &TextTokenizer) -> Result<Vec<Piece>, Error> {
    let mut stream = tokenizer.stream(false);
    let mut pieces: Vec<Piece> = Vec::new();
    let mut open = Piece { text: String::new(), tokens: 0, trained: false, control: false };
    for (id, trained) in ids.iter().zip(trained) {
        open.tokens += 1;
        // A character that is trained in part is shown as trained.
        open.trained |= trained;
        let Some(text) = stream.push(*id)? else { continue };
        let name = tokenizer.id_to_token(*id).filter(|name| tokenizer.is_control(name));
        match name.and_then(|name| text.strip_suffix(&name).map(str::len).map(|at| (at, name))) {
            Some((at, name)) => {
                // Bytes that never became a character stand before it.
                if at > 0 {
                    let text = text[..at].to_owned();
                    pieces.push(Piece { text, tokens: open.tokens - 1, ..open });
                }
                let tokens = if at > 0 { 1 } else { open.tokens };
                pieces.push(Piece { text: name, tokens, trained: *trained, control: true });
            }
            None => pieces.push(Piece { text, tokens: open.tokens, trained: open.trained, control: false }),
        }
        open = Piece { text: String::new(), tokens: 0, trained: false, control: false };
    }
    if let Some(text) = stream.finish()? {
        pieces.push(Piece { text, ..open });
    }
    Ok(pieces)
}

/// A long stretch without its middle: what is shown in front, what is left out, what is shown at the end. It is cut at
/// more than `characters`, or at more than `lines` line breaks.
pub fn shortened(pieces: &[Piece], characters: usize, lines: usize) -> (&[Piece], &[Piece], &[Piece]) {
    let size = |p: &Piece| (p.text.chars().count(), p.text.matches('\n').count());
    let (all, breaks) = pieces.iter().map(size).fold((0, 0), |sum, p| (sum.0 + p.0, sum.1 + p.1));
    if all <= characters && breaks <= lines {
        return (pieces, &[], &[]);
    }
    // How many of these pieces go into half of the room.
    let half = |pieces: &mut dyn Iterator<Item = &Piece>| {
        let (mut used, mut broken) = (0, 0);
        pieces
            .take_while(|p| {
                let (more, ends) = size(p);
                (used, broken) = (used + more, broken + ends);
                used <= characters / 2 && broken <= lines / 2
            })
            .count()
    };
    let front = half(&mut pieces.iter());
    let back = half(&mut pieces[front..].iter().rev());
    let (front, rest) = pieces.split_at(front);
    let (left_out, back) = rest.split_at(rest.len() - back);
    (front, left_out, back)
}

/// Adds a character, or a picture of it when it does not show or moves what does: a terminal must not obey the data.
pub fn visible(c: char, text: &mut String) {
    match c {
        '\u{7f}' => text.push('\u{2421}'),
        c if (c as u32) < 0x20 => text.push(char::from_u32(0x2400 + c as u32).unwrap_or('\u{fffd}')),
        '\u{80}'..='\u{9f}'
        | '\u{200b}'
        | '\u{200e}'
        | '\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}'
        | '\u{feff}' => {
            text.extend(c.escape_unicode());
        }
        c => text.push(c),
    }
}
