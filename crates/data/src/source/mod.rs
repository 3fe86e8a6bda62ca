//! Where rows come from: files of several formats, read one after the other with bounded memory.

mod csv;
mod fault;
mod file;
mod format;
mod guard;
mod integer;
mod json;
mod jsonl;
mod net;
mod net_fault;
mod object;
mod parquet;
mod parquet_value;
mod place;
mod remote;
mod snippet;
mod stored;
mod text;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use self::fault::SourceError;
pub use self::net::Network;
pub use self::object::parse_object;
use crate::error::{Error, RowError};
use crate::rows::MAX_LINE_BYTES;

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One JSON object a line.
    Jsonl,
    /// A JSON array of objects.
    Json,
    /// Comma-separated values with a header.
    Csv,
    /// Tab-separated values with a header.
    Tsv,
    /// Apache Parquet.
    Parquet,
    /// The rows of a query.
    Sql,
}

/// Where a record stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// Index into [`Records::files`].
    pub file: u32,
    /// One-based: the line a record starts on, or the row where a format has no lines.
    pub number: u64,
}

impl Place {
    /// A line of the first file, or of the only one.
    pub fn line(number: usize) -> Self {
        Self { file: 0, number: number as u64 }
    }
}

/// A record as it was read.
#[derive(Debug, Clone, PartialEq)]
pub enum Raw {
    /// One JSON text, not parsed yet: that is done on many threads.
    Line(String),
    /// Column names and values.
    Object(Map<String, Value>),
}

/// One record of a source.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Where it stands.
    pub place: Place,
    /// What it holds, or why that cannot be read. Reading goes on behind a bad record where the format allows it.
    pub raw: Result<Raw, RowError>,
}

/// A file that records came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileFacts {
    /// As the user knows it: a path, a URI, the text of a query.
    pub name: String,
    /// How it is written.
    pub format: Format,
    /// Bytes as stored.
    pub bytes: u64,
    /// Hex digest of the bytes as stored; empty before the end was read.
    pub sha256: String,
    /// Records read.
    pub records: u64,
}

/// How to read.
#[derive(Debug, Clone, Default)]
pub struct SourceOptions {
    /// The format, where the name does not tell it.
    pub format: Option<Format>,
    /// What is too much.
    pub limits: Limits,
    /// How to speak to servers.
    pub network: Network,
}

/// Bounds that keep a bad file from filling memory or disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// The longest record in bytes.
    pub line_bytes: usize,
    /// The most bytes that one file has, unpacked.
    pub output_bytes: u64,
    /// The most bytes that one stored byte unpacks to.
    pub ratio: u64,
    /// Unpacked bytes from which on the ratio counts.
    pub ratio_after: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { line_bytes: MAX_LINE_BYTES, output_bytes: 64 << 30, ratio: 100, ratio_after: 64 << 20 }
    }
}

/// A record with its number, as a format gives it.
type Numbered = (u64, Result<Raw, RowError>);

/// A reader of one format.
trait Inner: Send {
    fn next(&mut self) -> Result<Option<Numbered>, Error>;

    /// A choice that the reader made and the user should know.
    fn note(&self) -> Option<String> {
        None
    }
}

/// Whatever gives records one by one: a reader of one format, or a query.
pub trait RecordReader: Send {
    /// The next record, or nothing at the end.
    ///
    /// # Errors
    /// A fault that nothing can be read behind.
    fn next_record(&mut self) -> Result<Option<Record>, Error>;

    /// What is known of the file: final once [`RecordReader::next_record`] gave nothing.
    fn facts(&self) -> FileFacts;

    /// What the user should know of how it was read, in sentences.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
}

/// The records of one or several files, in order.
pub struct Records {
    waiting: std::vec::IntoIter<Box<dyn RecordReader>>,
    current: Option<Box<dyn RecordReader>>,
    files: Vec<FileFacts>,
    notes: Vec<String>,
    /// An error behind records that were read before it.
    fault: Option<Error>,
    /// Whether files were named and gave no record yet: nothing at all is an error.
    barren: bool,
}

impl std::fmt::Debug for Records {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Records").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Records {
    /// The records of the files, directories, patterns and addresses that `uris` name. Files are opened one after the
    /// other, when their turn comes.
    ///
    /// # Errors
    /// Nothing there, or nothing that can be read.
    pub fn open(uris: &[String], options: &SourceOptions) -> Result<Self, Error> {
        let found = place::Found::of(uris, options)?;
        let options = Arc::new(options.clone());
        let reader = |item| Box::new(file::FileReader::new(item, Arc::clone(&options))) as _;
        let mut this = Self::of(found.items.into_iter().map(reader).collect());
        this.notes = found.notes;
        this.barren = true;
        Ok(this)
    }

    /// The records of these readers.
    pub fn of(readers: Vec<Box<dyn RecordReader>>) -> Self {
        let mut waiting = readers.into_iter();
        let current = waiting.next();
        Self { waiting, current, files: Vec::new(), notes: Vec::new(), fault: None, barren: false }
    }

    /// Up to `max_records` records, or fewer once they hold `max_bytes`; none at the end.
    ///
    /// # Errors
    /// A fault that nothing can be read behind, once the records before it were given. [`Error::NoRows`] when files that
    /// were named have no record at all.
    pub fn next_batch(&mut self, max_records: usize, max_bytes: usize) -> Result<Vec<Record>, Error> {
        if let Some(fault) = self.fault.take() {
            return Err(fault);
        }
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while batch.len() < max_records && bytes < max_bytes {
            let Some(reader) = &mut self.current else { break };
            let file = self.files.len() as u32;
            match reader.next_record() {
                Ok(Some(mut record)) => {
                    record.place.file = file;
                    bytes += record.raw.as_ref().map_or(0, Raw::bytes);
                    batch.push(record);
                    self.barren = false;
                }
                Ok(None) => {
                    self.files.push(reader.facts());
                    self.notes.extend(reader.notes());
                    self.current = self.waiting.next();
                }
                Err(error) => {
                    self.files.push(reader.facts());
                    self.notes.extend(reader.notes());
                    (self.current, self.waiting, self.barren) = (None, Vec::new().into_iter(), false);
                    if batch.is_empty() {
                        return Err(error);
                    }
                    self.fault = Some(error);
                }
            }
        }
        if self.current.is_none() && std::mem::take(&mut self.barren) {
            return Err(Error::NoRows { name: self.title() });
        }
        Ok(batch)
    }

    /// What the user should know of how the files were found and read, in sentences. Complete at the end.
    pub fn notes(&self) -> Vec<String> {
        self.notes.iter().cloned().chain(self.current.iter().flat_map(|r| r.notes())).collect()
    }

    /// The files read to their end, in order, and the one being read.
    pub fn files(&self) -> Vec<FileFacts> {
        self.files.iter().cloned().chain(self.current.iter().map(|r| r.facts())).collect()
    }

    /// What to call all of it: the name of the only file, or of the first and how many more.
    pub fn title(&self) -> String {
        title(&self.files())
    }

    /// The place in words: the file and the line or row.
    pub fn locate(&self, place: Place) -> String {
        locate(&self.files(), place)
    }

    /// The name of the file a record came from.
    pub fn name(&self, place: Place) -> String {
        match self.files.get(place.file as usize) {
            Some(facts) => facts.name.clone(),
            None => self.current.as_ref().map(|r| r.facts().name).unwrap_or_default(),
        }
    }
}

/// What to call several files together.
pub(crate) fn title(files: &[FileFacts]) -> String {
    match files {
        [] => "the data".to_owned(),
        [only] => only.name.clone(),
        [first, rest @ ..] => format!("{} and {} more", first.name, rest.len()),
    }
}

/// A place in words.
pub(crate) fn locate(files: &[FileFacts], place: Place) -> String {
    match files.get(place.file as usize) {
        Some(FileFacts { name, format: Format::Parquet | Format::Sql, .. }) => {
            format!("`{name}`, row {}", place.number)
        }
        Some(facts) => format!("`{}`:{}", facts.name, place.number),
        None => format!("row {}", place.number),
    }
}

impl Raw {
    /// About how much memory it takes.
    fn bytes(&self) -> usize {
        match self {
            Self::Line(text) => text.len(),
            Self::Object(object) => object.iter().map(|(k, v)| 32 + k.len() + size(v)).sum(),
        }
    }

    /// The columns and their values, for a caller who needs the record again: text is parsed where it is.
    ///
    /// # Errors
    /// Text that is no JSON object.
    pub fn to_object(&self) -> Result<Map<String, Value>, RowError> {
        match self {
            Self::Object(object) => Ok(object.clone()),
            Self::Line(text) => parse_object(text),
        }
    }

    /// The columns and their values.
    ///
    /// # Errors
    /// Text that is no JSON object.
    pub fn into_object(self) -> Result<Map<String, Value>, RowError> {
        match self {
            Self::Object(object) => Ok(object),
            Self::Line(text) => parse_object(&text),
        }
    }
}

fn size(value: &Value) -> usize {
    match value {
        Value::String(text) => 32 + text.len(),
        Value::Array(items) => 32 + items.iter().map(size).sum::<usize>(),
        Value::Object(object) => 32 + object.iter().map(|(k, v)| 32 + k.len() + size(v)).sum::<usize>(),
        _ => 32,
    }
}
