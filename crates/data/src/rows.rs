//! JSONL rows: streamed lines, and what each line means.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, RowError};
use crate::sip::Fingerprint;

/// The longest line that is read, in bytes: a file without line breaks must not fill the memory.
pub const MAX_LINE_BYTES: usize = 64 << 20;

/// Column names that hold the completion when none is configured.
const COMPLETION_NAMES: [&str; 3] = ["completion", "response", "output"];

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
    /// One-based line in the file.
    pub line: usize,
}

impl Row {
    /// A 128-bit hash of the content (not of the line): equal rows have equal fingerprints, in every version.
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

    pub(crate) fn shape(&self) -> &'static str {
        match self.content {
            RowContent::PromptCompletion { .. } => "prompt and completion",
            RowContent::Messages(_) => "messages",
        }
    }
}

/// Which columns hold what. `None` means the names that are recognised without being told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Columns {
    /// Column of the prompt; default `prompt`.
    pub prompt: Option<String>,
    /// Column of the completion; default `completion`, `response` or `output`.
    pub completion: Option<String>,
    /// Column of the conversation; default `messages`.
    pub messages: Option<String>,
}

/// One raw line with its one-based number.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) number: usize,
    pub(crate) text: Result<String, RowError>,
}

/// Streams the non-blank lines of a file.
pub(crate) struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    number: usize,
    limit: usize,
    failed: bool,
}

impl Lines {
    pub(crate) fn open(path: &Path, limit: usize) -> Result<Self, Error> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        if file.metadata().map_err(|e| Error::io(path, e))?.is_dir() {
            return Err(Error::IsDirectory { path: path.to_owned() });
        }
        let reader = BufReader::with_capacity(1 << 16, file);
        Ok(Self { path: path.to_owned(), reader, number: 0, limit, failed: false })
    }

    /// The next line that is not blank. A line that cannot be read as text ends the stream.
    pub(crate) fn next_line(&mut self) -> Result<Option<Line>, Error> {
        while !self.failed {
            let mut bytes = Vec::new();
            let bound = self.limit as u64 + 2;
            let read = self.reader.by_ref().take(bound).read_until(b'\n', &mut bytes);
            if read.map_err(|e| Error::io(&self.path, e))? == 0 {
                return Ok(None);
            }
            self.number += 1;
            if bytes.last() == Some(&b'\n') {
                bytes.pop();
            }
            if bytes.last() == Some(&b'\r') {
                bytes.pop();
            }
            let text = self.decode(bytes);
            if text.as_ref().is_ok_and(|t| t.trim().is_empty()) {
                continue;
            }
            self.failed = text.is_err();
            return Ok(Some(Line { number: self.number, text }));
        }
        Ok(None)
    }

    fn decode(&self, mut bytes: Vec<u8>) -> Result<String, RowError> {
        if self.number == 1 {
            if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
                return Err(RowError::Utf16);
            }
            if bytes.starts_with(&[0xef, 0xbb, 0xbf]) {
                bytes.drain(..3);
            }
        }
        if bytes.len() > self.limit {
            return Err(RowError::LineTooLong { limit: self.limit });
        }
        crate::source::text(bytes)
    }
}

/// A parsed row and the columns that nothing reads.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) row: Row,
    pub(crate) ignored: BTreeSet<String>,
}

/// Reads a whole file into rows, in file order. For tools that need the text; [`crate::load`] streams.
pub fn read_rows(path: &Path, columns: &Columns) -> Result<Vec<Row>, Error> {
    let mut lines = Lines::open(path, MAX_LINE_BYTES)?;
    let mut rows: Vec<Row> = Vec::new();
    while let Some(line) = lines.next_line()? {
        let row = parse_line(&line, columns).map_err(|e| Error::row(path, line.number, e))?.row;
        if let Some(first) = rows.first() {
            check_shape(path, first.shape(), first.line, &row)?;
        }
        rows.push(row);
    }
    if rows.is_empty() {
        return Err(Error::NoRows { path: path.to_owned() });
    }
    Ok(rows)
}

/// Every row of a file has the shape of its first.
pub(crate) fn check_shape(
    path: &Path,
    expected: &'static str,
    first_line: usize,
    row: &Row,
) -> Result<(), Error> {
    if row.shape() == expected {
        return Ok(());
    }
    Err(Error::MixedShapes {
        path: path.to_owned(),
        line: row.line,
        found: row.shape(),
        first_line,
        expected,
    })
}

pub(crate) fn parse_line(line: &Line, columns: &Columns) -> Result<Parsed, RowError> {
    let text = line.text.as_deref().map_err(Clone::clone)?;
    parse_object(crate::source::parse_object(text)?, columns, line.number)
}

fn parse_object(mut object: Map<String, Value>, columns: &Columns, line: usize) -> Result<Parsed, RowError> {
    let messages = columns.messages.as_deref().unwrap_or("messages");
    let prompt = columns.prompt.as_deref().unwrap_or("prompt");
    // A column named by the user wins over one that is merely recognised.
    let chosen = columns.prompt.is_some() || columns.completion.is_some();
    let has_messages = object.contains_key(messages) && (columns.messages.is_some() || !chosen);
    if has_messages && !chosen && columns.messages.is_none() && object.contains_key(prompt) {
        return Err(RowError::Ambiguous { first: prompt.to_owned(), second: messages.to_owned() });
    }
    let content = if has_messages {
        let value = object.shift_remove(messages).unwrap_or_default();
        RowContent::Messages(parse_messages(value, messages)?)
    } else {
        parse_pair(&mut object, prompt, messages, columns)?
    };
    let ignored = object.into_iter().map(|(name, _)| name).collect();
    Ok(Parsed { row: Row { content, line }, ignored })
}

fn parse_pair(
    object: &mut Map<String, Value>,
    prompt: &str,
    messages: &str,
    columns: &Columns,
) -> Result<RowContent, RowError> {
    let listed = |object: &Map<String, Value>| object.keys().cloned().collect::<Vec<_>>().join(", ");
    if !object.contains_key(prompt) {
        return Err(RowError::NoPrompt {
            wanted: prompt.to_owned(),
            messages: messages.to_owned(),
            columns: listed(object),
        });
    }
    let names: Vec<&str> = match &columns.completion {
        Some(name) => vec![name.as_str()],
        None => COMPLETION_NAMES.iter().copied().filter(|n| *n != prompt).collect(),
    };
    let mut present = names.iter().copied().filter(|n| object.contains_key(*n));
    let Some(name) = present.next() else {
        let wanted = names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
        return Err(RowError::NoCompletion { wanted, columns: listed(object) });
    };
    if let Some(second) = present.next() {
        return Err(RowError::Ambiguous { first: name.to_owned(), second: second.to_owned() });
    }
    let prompt = take_text(object, prompt)?;
    let completion = take_text(object, name)?;
    if completion.trim().is_empty() {
        return Err(RowError::EmptyCompletion { column: name.to_owned() });
    }
    Ok(RowContent::PromptCompletion { prompt, completion })
}

fn take_text(object: &mut Map<String, Value>, name: &str) -> Result<String, RowError> {
    text(object.shift_remove(name).unwrap_or_default(), name)
}

fn text(value: Value, column: &str) -> Result<String, RowError> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(RowError::WrongType {
            column: column.to_owned(),
            found: json_type(&other),
            expected: "a string",
        }),
    }
}

fn parse_messages(value: Value, column: &str) -> Result<Vec<Message>, RowError> {
    let Value::Array(items) = value else {
        let found = json_type(&value);
        return Err(RowError::WrongType { column: column.to_owned(), found, expected: "a list of messages" });
    };
    if items.is_empty() {
        return Err(RowError::NoMessages);
    }
    let messages = items
        .into_iter()
        .enumerate()
        .map(|(i, item)| parse_message(item, &format!("{column}[{i}]")))
        .collect::<Result<Vec<_>, _>>()?;
    if !messages.iter().any(Message::is_assistant) {
        return Err(RowError::NoAssistant);
    }
    Ok(messages)
}

fn parse_message(item: Value, at: &str) -> Result<Message, RowError> {
    let Value::Object(mut object) = item else {
        let found = json_type(&item);
        return Err(RowError::WrongType { column: at.to_owned(), found, expected: "an object" });
    };
    let mut field = |key: &'static str| match object.shift_remove(key) {
        None => Err(RowError::MessageKey { message: at.to_owned(), key }),
        Some(value) => text(value, &format!("{at}.{key}")),
    };
    let role = field("role")?;
    let content = field("content")?;
    let weight = object.shift_remove("weight").filter(|w| !w.is_null());
    let trained = match weight.as_ref().map(Value::as_f64) {
        None => true,
        Some(Some(w)) if role == "assistant" && (w == 0.0 || w == 1.0) => w == 1.0,
        Some(_) => return Err(RowError::Weight { message: at.to_owned() }),
    };
    let message = Message { role, content, trained, extra: object };
    if message.is_assistant() && trained && message.content.trim().is_empty() {
        return Err(RowError::EmptyCompletion { column: format!("{at}.content") });
    }
    Ok(message)
}

fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
