//! Where rows come from: files of several formats, read one after the other with bounded memory.

use std::fmt::Write as _;
use std::io::Read as _;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use crate::error::{Error, RowError};
use crate::rows::{Lines, MAX_LINE_BYTES};

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
    /// Hex digest of the bytes as stored.
    pub sha256: String,
    /// Records read.
    pub records: u64,
}

/// How to read.
#[derive(Debug, Clone, Default)]
pub struct SourceOptions {
    /// The format, where the name does not tell it.
    pub format: Option<Format>,
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
}

/// The records of one or several files, in order.
pub struct Records {
    waiting: std::vec::IntoIter<Box<dyn RecordReader>>,
    current: Option<Box<dyn RecordReader>>,
    files: Vec<FileFacts>,
}

impl std::fmt::Debug for Records {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Records").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Records {
    /// The records of the files, directories, patterns and addresses that `uris` name.
    ///
    /// # Errors
    /// Nothing there, or nothing that can be read.
    pub fn open(uris: &[String], _options: &SourceOptions) -> Result<Self, Error> {
        let readers = uris.iter().map(|uri| JsonLines::open(Path::new(uri)).map(|r| Box::new(r) as _));
        Ok(Self::of(readers.collect::<Result<Vec<Box<dyn RecordReader>>, Error>>()?))
    }

    /// The records of these readers.
    pub fn of(readers: Vec<Box<dyn RecordReader>>) -> Self {
        let mut waiting = readers.into_iter();
        let current = waiting.next();
        Self { waiting, current, files: Vec::new() }
    }

    /// Up to `max_records` records, or fewer once they hold `max_bytes`; none at the end.
    ///
    /// # Errors
    /// A fault that nothing can be read behind; records read before it are lost with the batch.
    pub fn next_batch(&mut self, max_records: usize, max_bytes: usize) -> Result<Vec<Record>, Error> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while batch.len() < max_records && bytes < max_bytes {
            let Some(reader) = &mut self.current else { break };
            let file = self.files.len() as u32;
            if let Some(mut record) = reader.next_record()? {
                record.place.file = file;
                if let Ok(raw) = &record.raw {
                    bytes += raw.bytes();
                }
                batch.push(record);
            } else {
                self.files.push(reader.facts());
                self.current = self.waiting.next();
            }
        }
        Ok(batch)
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

    /// The columns and their values.
    ///
    /// # Errors
    /// Text that is no JSON object.
    pub fn into_object(self) -> Result<Map<String, Value>, RowError> {
        match self {
            Self::Object(object) => Ok(object),
            Self::Line(text) => crate::rows::parse_text(&text),
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

struct JsonLines {
    lines: Lines,
    facts: FileFacts,
}

impl JsonLines {
    fn open(path: &Path) -> Result<Self, Error> {
        let mut file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
        let mut digest = Sha256::new();
        let (mut buffer, mut bytes) = (vec![0; 1 << 16], 0);
        loop {
            let n = file.read(&mut buffer).map_err(|e| Error::io(path, e))?;
            if n == 0 {
                break;
            }
            digest.update(&buffer[..n]);
            bytes += n as u64;
        }
        let mut sha256 = String::new();
        for byte in digest.finalize() {
            // Writing to a string cannot fail.
            let _ = write!(sha256, "{byte:02x}");
        }
        let name = path.display().to_string();
        let facts = FileFacts { name, format: Format::Jsonl, bytes, sha256, records: 0 };
        Ok(Self { lines: Lines::open(path, MAX_LINE_BYTES)?, facts })
    }
}

impl RecordReader for JsonLines {
    fn next_record(&mut self) -> Result<Option<Record>, Error> {
        let Some(line) = self.lines.next_line()? else { return Ok(None) };
        self.facts.records += 1;
        let place = Place { file: 0, number: line.number as u64 };
        Ok(Some(Record { place, raw: line.text.map(Raw::Line) }))
    }

    fn facts(&self) -> FileFacts {
        self.facts.clone()
    }
}
