//! What can be wrong with a data set, a row, a chat template or a tokenizer.

use std::path::{Path, PathBuf};

use crate::source::{Place, Records};

/// Every error of this crate. Each message says what, where, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to open or read a file.
    #[error("cannot read `{}`: {source}; check the path and its permissions", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The data set has no row.
    #[error("`{name}` has no rows; give it at least one, with `prompt` and `completion` or with `messages`")]
    NoRows {
        /// The data set.
        name: String,
    },
    /// One row cannot be used.
    #[error("{place}: {source}")]
    Row {
        /// The data set and the row's line or number in it.
        place: String,
        /// What is wrong with it.
        source: RowError,
    },
    /// Several rows cannot be used.
    #[error("{place}: {source}\n{} more {} cannot be used; `tunesmith data check` lists them", count - 1, if *count == 2 { "row" } else { "rows" })]
    Rows {
        /// The data set and the first such row's line or number in it.
        place: String,
        /// What is wrong with it.
        source: RowError,
        /// How many rows cannot be used.
        count: usize,
    },
    /// No row fits into the length limit.
    #[error(
        "`{name}`: all {rows} rows are longer than max_seq_length {limit} (shortest {shortest}, longest {longest} tokens); raise max_seq_length or shorten the rows"
    )]
    AllOverLong {
        /// The data set.
        name: String,
        /// Rows read.
        rows: usize,
        /// The limit in tokens.
        limit: usize,
        /// Tokens of the shortest row.
        shortest: usize,
        /// Tokens of the longest row.
        longest: usize,
    },
    /// Nothing that is left counts in the loss.
    #[error(
        "`{name}`: zero trainable tokens: {zero_trained} of {rows} rows train nothing and {over_long} are over-long; give at least one assistant turn a weight of 1"
    )]
    ZeroTrainable {
        /// The data set.
        name: String,
        /// Rows read.
        rows: usize,
        /// Rows without a trainable token.
        zero_trained: usize,
        /// Rows dropped for their length.
        over_long: usize,
    },
    /// A temporary file could not be written or read.
    #[error("cannot {action} a temporary file in `{}`: {source}; free some space there", dir.display())]
    Temporary {
        /// `write` or `read`.
        action: &'static str,
        /// Where temporary files are kept.
        dir: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A document that a pack has no room for.
    #[error(
        "a document of {tokens} tokens does not fit into {budget}; raise the budget or shorten the document"
    )]
    TooLongToPack {
        /// Its tokens.
        tokens: usize,
        /// Tokens of a pack.
        budget: usize,
    },
    /// A tokenizer file is missing, malformed or contradicts the others.
    #[error("`{}`: {what}", path.display())]
    TokenizerFile {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        what: String,
    },
    /// A chat template does not parse.
    #[error("`{}`: the chat template does not parse: {what}; correct the template or train with template = \"none\"", path.display())]
    TemplateFile {
        /// The file the template came from.
        path: PathBuf,
        /// The template engine's reason, with the line.
        what: String,
    },
    /// The process that runs an unknown chat template does not start.
    #[error("the process that runs the model's chat template, `{}`, could not be started ({source}); train with template = \"none\", or start it where processes may start others", path.display())]
    TemplateHelper {
        /// The program.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// A chat template was asked for, but the model has none.
    #[error(
        "`{}` has no chat template (no `chat_template.jinja`, no `chat_template` in `tokenizer_config.json`); add one or use template = \"none\"",
        path.display()
    )]
    NoTemplate {
        /// The model's folder.
        path: PathBuf,
    },
    /// The tokenizer can produce ids that the model has no embedding for.
    #[error(
        "the tokenizer has token id {max_id} (`{token}`), but the model's vocab_size is {vocab_size}; use the tokenizer that belongs to the model"
    )]
    VocabTooSmall {
        /// The largest id of the tokenizer.
        max_id: u32,
        /// The token with that id.
        token: String,
        /// Rows of the model's embedding.
        vocab_size: usize,
    },
    /// An end-of-sequence id of the model's configuration does not exist in the tokenizer.
    #[error(
        "eos_token_id {id} of the model's configuration is not a token of the tokenizer; use the tokenizer that belongs to the model"
    )]
    UnknownEos {
        /// The id.
        id: u32,
    },
    /// The held-out fraction is not usable.
    #[error(
        "validation fraction {fraction} is out of range; use a number from 0 up to, but not including, 1"
    )]
    Fraction {
        /// What was asked for.
        fraction: f64,
    },
    /// A file, directory, pattern or address that rows are read from.
    #[error(transparent)]
    Source(#[from] crate::source::SourceError),
    /// A table or a query.
    #[error(transparent)]
    Table(#[from] crate::tables::TableError),
    /// Ids do not decode.
    #[error("cannot decode token ids: {0}")]
    Decode(String),
}

impl Error {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }
    pub(crate) fn tokenizer(path: &Path, what: impl Into<String>) -> Self {
        Self::TokenizerFile { path: path.to_owned(), what: what.into() }
    }
    pub(crate) fn row(records: &Records, place: Place, source: RowError) -> Self {
        Self::Row { place: records.locate(place), source }
    }
}

/// A place inside one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spot {
    /// One-based line, counted from the record's first.
    pub line: usize,
    /// One-based byte position in that line.
    pub column: usize,
}

impl std::fmt::Display for Spot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            1 => write!(f, "column {}", self.column),
            line => write!(f, "line {line} of the record, column {}", self.column),
        }
    }
}

/// What is wrong with one row; [`Error::Row`] adds the file and the line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RowError {
    /// A byte sequence that is not UTF-8.
    #[error("the byte at {at} is not valid UTF-8 (near `{snippet}`); save the file as UTF-8")]
    InvalidUtf8 {
        /// Where in the record.
        at: Spot,
        /// What stands around it.
        snippet: String,
    },
    /// A NUL byte: text files have none.
    #[error("a NUL byte at {at} (near `{snippet}`); remove it, or save the file as UTF-8 if it is UTF-16")]
    Nul {
        /// Where in the record.
        at: Spot,
        /// What stands around it.
        snippet: String,
    },
    /// A UTF-16 file.
    #[error("the file is UTF-16; save it as UTF-8")]
    Utf16,
    /// A line beyond the reader's bound.
    #[error("the line is longer than {limit} bytes; split the row or check that the file has line breaks")]
    LineTooLong {
        /// The bound in bytes.
        limit: usize,
    },
    /// Text that is not JSON.
    #[error("invalid JSON at {at} near `{snippet}` ({reason}); write one JSON object per record")]
    InvalidJson {
        /// Where in the record.
        at: Spot,
        /// What the parser expected.
        reason: String,
        /// What stands around it.
        snippet: String,
    },
    /// Two values for one key: a parser would keep the last and say nothing.
    #[error("the key `{key}` stands twice in one object ({at}); remove one")]
    DuplicateKey {
        /// The key.
        key: String,
        /// Where it stands again.
        at: Spot,
    },
    /// JSON that is nested deeper than a parser can follow safely.
    #[error("the JSON is nested more than 127 levels deep at {at}; flatten the row")]
    TooDeep {
        /// Where it gets too deep.
        at: Spot,
    },
    /// `\ud800` and the like without the other half.
    #[error(
        "half of a surrogate pair at {at} (near `{snippet}`) is no character; write the whole pair or the character itself"
    )]
    LoneSurrogate {
        /// Where in the record.
        at: Spot,
        /// What stands around it.
        snippet: String,
    },
    /// A row of a table with more or fewer fields than the header.
    #[error(
        "the row has {found} fields, but the header has {expected}; put fields with separators or line breaks into double quotes"
    )]
    Ragged {
        /// Fields of the row.
        found: usize,
        /// Fields of the header.
        expected: usize,
    },
    /// A value of a table that cannot be read.
    #[error("`{column}` {what}")]
    Cell {
        /// The column.
        column: String,
        /// What is wrong and what to do.
        what: String,
    },
    /// JSON, but not an object.
    #[error(
        "the record is a JSON {found}, not an object; write one object per record, such as {{\"prompt\": …, \"completion\": …}}"
    )]
    NotAnObject {
        /// The JSON type found.
        found: &'static str,
    },
    /// No known column names the prompt.
    #[error(
        "the row has no `{wanted}` column and no `{messages}` (its columns: {columns}); rename a column or set the column names"
    )]
    NoPrompt {
        /// The prompt column looked for.
        wanted: String,
        /// The messages column looked for.
        messages: String,
        /// The columns the row has.
        columns: String,
    },
    /// A column that the other rows have.
    #[error(
        "the row has no `{column}` column (its columns: {columns}); every row needs the columns of the first, or set the column names"
    )]
    MissingColumn {
        /// The column.
        column: String,
        /// The columns the row has.
        columns: String,
    },
    /// A prompt without completion.
    #[error(
        "the row has {what} but no completion (looked for {wanted}; its columns: {columns}); add one or set the column name"
    )]
    NoCompletion {
        /// What it has.
        what: &'static str,
        /// The columns looked for.
        wanted: String,
        /// The columns the row has.
        columns: String,
    },
    /// Two columns could be meant.
    #[error("the row has both `{first}` and `{second}`; remove one or set the column name")]
    Ambiguous {
        /// One column.
        first: String,
        /// The other.
        second: String,
    },
    /// A completion without text.
    #[error("`{column}` is empty or only white space; remove the row or write the answer")]
    EmptyCompletion {
        /// The column.
        column: String,
    },
    /// A value of the wrong JSON type.
    #[error("`{column}` is {found}, not {expected}; correct the value")]
    WrongType {
        /// The column, or the path inside `messages`.
        column: String,
        /// The JSON type found.
        found: &'static str,
        /// What is needed.
        expected: &'static str,
    },
    /// A message lacks a field.
    #[error("`{message}` has no `{key}`; every message needs `role` and `content`")]
    MessageKey {
        /// Which message.
        message: String,
        /// The missing key.
        key: &'static str,
    },
    /// A turn lacks a field.
    #[error("`{message}` has no `{key}`; every turn needs `from` and `value`")]
    TurnKey {
        /// Which turn.
        message: String,
        /// The missing key.
        key: &'static str,
    },
    /// A turn is by nobody known.
    #[error(
        "`{message}.from` is `{from}`; use `human`, `gpt`, `system`, `function_call`, `observation` or `tool`"
    )]
    Speaker {
        /// Which turn.
        message: String,
        /// What it says.
        from: String,
    },
    /// A part of a message that is not text.
    #[error("`{at}` is no text part; only parts of `\"type\": \"text\"` can be trained on")]
    ContentPart {
        /// Which part.
        at: String,
    },
    /// A row beyond the length limit, under the policy `fail`.
    #[error(
        "the row has {tokens} tokens, more than max_seq_length {limit}; shorten it, raise the limit, or set over_long to `drop` or `truncate-prompt`"
    )]
    OverLong {
        /// Its tokens.
        tokens: usize,
        /// The limit.
        limit: usize,
    },
    /// `weight` is not 0 or 1, or not on an assistant turn.
    #[error("`{message}.weight` must be 0 or 1 and stand on an assistant turn; correct or remove it")]
    Weight {
        /// Which message.
        message: String,
    },
    /// `messages` is an empty list.
    #[error("`messages` is empty; remove the row or write the conversation")]
    NoMessages,
    /// Nothing to learn from.
    #[error("`messages` has no assistant turn, so there is nothing to train on; remove the row or add one")]
    NoAssistant,
    /// A chat row without a chat template.
    #[error(
        "the row has `messages`, but there is no chat template to render them with; use template = \"chat\" and a model that has one, or prompt and completion columns"
    )]
    NeedsTemplate,
    /// The template refused or broke.
    #[error("the chat template failed: {0}")]
    Template(String),
    /// A message holds a character that marks spans inside the renderer.
    #[error("a message contains the noncharacter U+{code:04X}, which is reserved; remove it")]
    ReservedCharacter {
        /// The code point.
        code: u32,
    },
    /// The rendering of a shorter conversation is not a prefix of the longer one's.
    #[error(
        "the chat template renders turn {turn} differently once the conversation goes on, so its tokens cannot be told apart; mark the assistant's text with {{% generation %}} in the template"
    )]
    NotAPrefix {
        /// One-based position of the assistant's message.
        turn: usize,
    },
    /// The template's marks and the assistant turns do not match one to one.
    #[error(
        "the chat template marks {spans} spans for {turns} assistant turns, so `weight` cannot be applied; remove the weights or correct the template"
    )]
    WeightSpans {
        /// Spans marked in the rendering.
        spans: usize,
        /// Assistant turns of the row.
        turns: usize,
    },
    /// More than one BOS at the start.
    #[error(
        "the text starts with two `{token}` tokens; remove the one written in the data or in the template"
    )]
    DoubleBos {
        /// The BOS token.
        token: String,
    },
    /// Neither the template nor the tokenizer ends the answer.
    #[error(
        "no stop token follows the last trained turn and none can be appended ({reason}); use a chat template that ends each turn with the model's EOS token"
    )]
    NoStopToken {
        /// Why none can be appended.
        reason: &'static str,
    },
    /// A message spells out a control token, and this tokenizer cannot keep it as text.
    #[error(
        "a message spells out the control token `{token}`, and this model's tokenizer cannot keep it as text; change the text of the row"
    )]
    LiteralToken {
        /// The control token.
        token: String,
    },
    /// The tokenizer failed or cannot be trusted on this text.
    #[error("the text cannot be tokenised: {0}")]
    Tokenizer(String),
}

impl RowError {
    /// Whether the row lacks a column that its shape needs.
    pub fn is_missing_column(&self) -> bool {
        matches!(self, Self::NoPrompt { .. } | Self::NoCompletion { .. } | Self::MissingColumn { .. })
    }

    /// A column that a row lacks.
    pub(crate) fn missing(column: &str, row: &serde_json::Map<String, serde_json::Value>) -> Self {
        let columns = row.keys().cloned().collect::<Vec<_>>().join(", ");
        Self::MissingColumn { column: column.to_owned(), columns }
    }
}
