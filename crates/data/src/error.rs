//! What can be wrong with a data set, a row, a chat template or a tokenizer.

use std::path::{Path, PathBuf};

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
    /// A folder was given where a JSONL file is needed.
    #[error("`{}` is a directory; name the JSONL file inside it", path.display())]
    IsDirectory {
        /// The folder.
        path: PathBuf,
    },
    /// The data set has no row.
    #[error("`{}` has no rows; write one JSON object per line, with `prompt` and `completion` or with `messages`", path.display())]
    NoRows {
        /// The data set.
        path: PathBuf,
    },
    /// One row cannot be used.
    #[error("`{}`:{line}: {source}", path.display())]
    Row {
        /// The data set.
        path: PathBuf,
        /// One-based line of the row.
        line: usize,
        /// What is wrong with it.
        source: RowError,
    },
    /// Two rows of one file have different shapes.
    #[error(
        "`{}`:{line}: this row has the shape {found}, but line {first_line} has {expected}; use one shape per file",
        path.display()
    )]
    MixedShapes {
        /// The data set.
        path: PathBuf,
        /// One-based line of the first row that differs.
        line: usize,
        /// Its shape.
        found: &'static str,
        /// The first row of the file.
        first_line: usize,
        /// The shape of the first row.
        expected: &'static str,
    },
    /// No row fits into the length limit.
    #[error(
        "`{}`: all {rows} rows are longer than max_seq_length {limit} (shortest {shortest}, longest {longest} tokens); raise max_seq_length or shorten the rows",
        path.display()
    )]
    AllOverLong {
        /// The data set.
        path: PathBuf,
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
        "`{}`: zero trainable tokens: {zero_trained} of {rows} rows train nothing and {over_long} are over-long; give at least one assistant turn a weight of 1",
        path.display()
    )]
    ZeroTrainable {
        /// The data set.
        path: PathBuf,
        /// Rows read.
        rows: usize,
        /// Rows without a trainable token.
        zero_trained: usize,
        /// Rows dropped for their length.
        over_long: usize,
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
    pub(crate) fn row(path: &Path, line: usize, source: RowError) -> Self {
        Self::Row { path: path.to_owned(), line, source }
    }
}

/// What is wrong with one row; [`Error::Row`] adds the file and the line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RowError {
    /// A byte sequence that is not UTF-8.
    #[error("byte {column} of the line is not valid UTF-8; save the file as UTF-8")]
    InvalidUtf8 {
        /// One-based byte position in the line.
        column: usize,
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
    #[error("invalid JSON at column {column} ({reason}); write one JSON object per line")]
    InvalidJson {
        /// One-based byte position in the line.
        column: usize,
        /// What the parser expected.
        reason: String,
    },
    /// JSON, but not an object.
    #[error(
        "the line is a JSON {found}, not an object; write one object per line, such as {{\"prompt\": …, \"completion\": …}}"
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
    /// A prompt without completion.
    #[error(
        "the row has a prompt but no completion (looked for {wanted}; its columns: {columns}); add one or set the column name"
    )]
    NoCompletion {
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
    /// The tokenizer failed or cannot be trusted on this text.
    #[error("the text cannot be tokenised: {0}")]
    Tokenizer(String),
}
