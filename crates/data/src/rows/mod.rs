//! What a record means: a prompt and its completion, or a conversation.

mod parse;
mod shape;

use serde_json::{Map, Value, json};

use crate::error::Error;
use crate::sip::Fingerprint;
use crate::source::{Place, Records};

pub use parse::Parsed;
pub use shape::{Columns, Shape};

/// The longest line that is read, in bytes: a file without line breaks must not fill the memory.
pub const MAX_LINE_BYTES: usize = 64 << 20;

/// One turn of a conversation, as Hugging Face chat templates and the `OpenAI` format have it.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// `system`, `user`, `assistant`, or whatever the template knows.
    pub role: String,
    /// The text of the turn.
    pub content: String,
    /// Whether an assistant turn counts in the loss (`weight` 1, the default, or 0).
    pub trained: bool,
    /// Further keys, handed to the template as they are.
    pub extra: Map<String, Value>,
}

impl Message {
    /// A turn with nothing but role and content.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), trained: true, extra: Map::new() }
    }

    /// Whether this is the assistant's turn.
    pub fn is_assistant(&self) -> bool {
        self.role == "assistant"
    }

    fn to_value(&self) -> Value {
        let mut object = Map::new();
        object.insert("role".to_owned(), json!(self.role));
        object.insert("content".to_owned(), json!(self.content));
        if !self.trained {
            object.insert("weight".to_owned(), json!(0));
        }
        object.extend(self.extra.clone());
        Value::Object(object)
    }
}

/// What a row says.
#[derive(Debug, Clone, PartialEq)]
pub enum RowContent {
    /// A prompt and the answer to learn.
    PromptCompletion {
        /// What the model is given.
        prompt: String,
        /// What it is to answer.
        completion: String,
    },
    /// A conversation; the assistant's turns are learned.
    Messages(Vec<Message>),
}

/// One row of a data set.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// What the row says.
    pub content: RowContent,
    /// Where it comes from.
    pub place: Place,
}

impl Row {
    /// A 128-bit hash of the content (not of the place): equal rows have equal fingerprints, in every version.
    pub fn fingerprint(&self) -> u128 {
        let mut hash = Fingerprint::new();
        match &self.content {
            RowContent::PromptCompletion { prompt, completion } => {
                hash.text("prompt").text(prompt).text(completion);
            }
            RowContent::Messages(messages) => {
                hash.text("messages");
                for m in messages {
                    hash.text(&m.role).text(&m.content).text(if m.trained { "1" } else { "0" });
                    if !m.extra.is_empty() {
                        hash.text(&Value::Object(m.extra.clone()).to_string());
                    }
                }
            }
        }
        hash.finish()
    }

    /// The row as one JSON object under the standard names, `prompt` and `completion` or `messages`, whatever its
    /// source called them: what a job keeps. Reading it again gives the same row.
    pub fn to_value(&self) -> Value {
        match &self.content {
            RowContent::PromptCompletion { prompt, completion } => {
                json!({ "prompt": prompt, "completion": completion })
            }
            RowContent::Messages(messages) => {
                json!({ "messages": messages.iter().map(Message::to_value).collect::<Vec<_>>() })
            }
        }
    }
}

/// Reads a whole source into rows, in order. For tools that need the text; [`crate::prepare`] streams.
///
/// # Errors
/// Whatever keeps a source from being read, and the first row that cannot be used.
pub fn read_rows(records: &mut Records, columns: &Columns) -> Result<Vec<Row>, Error> {
    let mut rows = Vec::new();
    let mut shape = None;
    loop {
        let batch = records.next_batch(4096, 16 << 20)?;
        if batch.is_empty() {
            break;
        }
        for record in batch {
            let place = record.place;
            let parsed = record.raw.and_then(crate::source::Raw::into_object).and_then(|object| {
                let shape = match &shape {
                    Some(shape) => shape,
                    None => shape.insert(Shape::recognise(&object, columns)?),
                };
                shape.parse(object, place)
            });
            rows.push(parsed.map_err(|e| Error::row(records, place, e))?.row);
        }
    }
    if rows.is_empty() {
        return Err(Error::NoRows { name: records.title() });
    }
    Ok(rows)
}
