//! What becomes of rows longer than the limit. No completion is ever cut.

use serde::{Deserialize, Serialize};

use crate::encode::{EncodedRow, Encoder};
use crate::error::RowError;
use crate::rows::{Message, Row, RowContent};

/// What becomes of a row longer than the limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OverLong {
    /// It is left out and counted.
    #[default]
    Drop,
    /// Its prompt loses text at its beginning, or a conversation its oldest exchanges first; counted. A row whose
    /// completion alone is too long is left out.
    TruncatePrompt,
    /// It is an error.
    Fail,
}

/// How often the cut is made again because the shorter text tokenises to more than was reckoned.
const ATTEMPTS: usize = 6;

/// The row with so much of its prompt that it fits into `limit` tokens, or nothing if its answer alone does not.
/// `length` is its length now.
pub(crate) fn truncate_prompt(
    row: &Row,
    length: usize,
    encoder: &Encoder,
    limit: usize,
) -> Result<Option<(Row, EncodedRow)>, RowError> {
    let place = row.place;
    match &row.content {
        RowContent::PromptCompletion { prompt, completion } => {
            let with = |prompt: String| Row {
                content: RowContent::PromptCompletion { prompt, completion: completion.clone() },
                place,
            };
            cut_text(prompt, length, encoder, limit, with)
        }
        RowContent::Messages(messages) => {
            let (turns, length) = match forget(messages, length, row, encoder, limit)? {
                Shortened::Fits(fits) => return Ok(Some(*fits)),
                Shortened::Still(turns, length) => (turns, length),
            };
            let Some(first) = turns.iter().position(|m| m.role == "user") else { return Ok(None) };
            let text = turns[first].content.clone();
            let with = |content: String| {
                let mut turns = turns.clone();
                turns[first].content = content;
                Row { content: RowContent::Messages(turns), place }
            };
            cut_text(&text, length, encoder, limit, with)
        }
    }
}

enum Shortened {
    Fits(Box<(Row, EncodedRow)>),
    Still(Vec<Message>, usize),
}

/// Leaves out the oldest exchanges, a user's turn up to the next one, as long as the conversation is too long and
/// another exchange with a trained answer follows. System messages at the beginning stay.
fn forget(
    messages: &[Message],
    length: usize,
    row: &Row,
    encoder: &Encoder,
    limit: usize,
) -> Result<Shortened, RowError> {
    let start = messages.iter().take_while(|m| m.role == "system").count();
    let (mut turns, mut length) = (messages.to_vec(), length);
    loop {
        let rest = turns.get(start + 1..).unwrap_or_default();
        let Some(next) = rest.iter().position(|m| m.role == "user").map(|i| start + 1 + i) else {
            return Ok(Shortened::Still(turns, length));
        };
        if !turns[next..].iter().any(|m| m.is_assistant() && m.trained) {
            return Ok(Shortened::Still(turns, length));
        }
        turns.drain(start..next);
        let shorter = Row { content: RowContent::Messages(turns.clone()), place: row.place };
        let encoded = encoder.encode_row(&shorter)?;
        length = encoded.example.ids.len();
        if length <= limit {
            return Ok(Shortened::Fits(Box::new((shorter, encoded))));
        }
    }
}

/// Cuts tokens off the beginning of a text until the row made `with` it fits.
fn cut_text(
    text: &str,
    length: usize,
    encoder: &Encoder,
    limit: usize,
    with: impl Fn(String) -> Row,
) -> Result<Option<(Row, EncodedRow)>, RowError> {
    let tokens = encoder.tokenizer().encode(text, false)?;
    let mut cut = 0;
    let mut length = length;
    for _ in 0..ATTEMPTS {
        cut += length - limit;
        let start = match tokens.offsets.get(cut) {
            Some(&(start, _)) => text.ceil_char_boundary(start),
            None => text.len(),
        };
        let row = with(text[start..].to_owned());
        let encoded = encoder.encode_row(&row)?;
        length = encoded.example.ids.len();
        if length <= limit {
            return Ok(Some((row, encoded)));
        }
        if start == text.len() {
            return Ok(None);
        }
    }
    Ok(None)
}
