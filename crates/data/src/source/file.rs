//! One file of a source, opened when its turn comes.

use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::sync::Arc;

use super::csv::Table;
use super::json::JsonArray;
use super::jsonl::JsonLines;
use super::parquet::Parquet;
use super::place::{Item, Location};
use super::stored::{Bytes, Counted, Tally, Text};
use super::{FileFacts, Format, Inner, Place, Record, RecordReader, SourceError, SourceOptions};
use crate::error::Error;

pub(super) struct FileReader {
    item: Item,
    options: Arc<SourceOptions>,
    inner: Option<Box<dyn Inner>>,
    tally: Arc<Tally>,
    records: u64,
}

impl FileReader {
    pub(super) fn new(item: Item, options: Arc<SourceOptions>) -> Self {
        Self { item, options, inner: None, tally: Arc::default(), records: 0 }
    }

    fn bytes(&self) -> Result<Bytes, Error> {
        Ok(match &self.item.location {
            Location::Stdin => Box::new(io::stdin()),
            Location::Path(path) => Box::new(File::open(path).map_err(|e| Error::io(path, e))?),
            Location::Remote(address) => address.open(&self.options.network)?,
        })
    }

    fn open(&self) -> Result<Box<dyn Inner>, Error> {
        let (name, limits) = (&self.item.name, &self.options.limits);
        if self.item.format == Format::Parquet {
            return Ok(Box::new(Parquet::open(self.seekable()?, name, limits)?));
        }
        let text = Text::open(self.bytes()?, name, self.item.packing, &self.tally, limits)?;
        Ok(match self.item.format {
            Format::Json => Box::new(JsonArray::new(text, limits.line_bytes)),
            Format::Csv => Box::new(Table::open(text, b',', limits.line_bytes)?),
            Format::Tsv => Box::new(Table::open(text, b'\t', limits.line_bytes)?),
            Format::Jsonl | Format::Parquet | Format::Sql => {
                Box::new(JsonLines::new(text, limits.line_bytes))
            }
        })
    }

    /// A file that can be read in any order, hashed. What comes as a stream is put on the disk first.
    fn seekable(&self) -> Result<File, Error> {
        let (name, inner) = (self.item.name.clone(), self.bytes()?);
        let mut counted = Counted { inner, tally: Arc::clone(&self.tally), name };
        let fault = |e: io::Error| e.downcast::<Error>().unwrap_or_else(|e| self.cannot_spool(e));
        if let Location::Path(path) = &self.item.location
            && path.is_file()
        {
            io::copy(&mut counted, &mut io::sink()).map_err(fault)?;
            return File::open(path).map_err(|e| Error::io(path, e));
        }
        let mut file = tempfile::tempfile().map_err(fault)?;
        let limit = self.options.limits.output_bytes;
        let copied = io::copy(&mut io::Read::take(&mut counted, limit + 1), &mut file).map_err(fault)?;
        if copied > limit {
            let what = format!("it is longer than {limit} bytes; split it or raise the bound");
            return Err(SourceError::TooLarge { name: self.item.name.clone(), what }.into());
        }
        file.flush().and_then(|()| file.rewind()).map_err(fault)?;
        Ok(file)
    }

    fn cannot_spool(&self, error: io::Error) -> Error {
        let what =
            format!("cannot keep it in the folder for temporary files ({error}); make room or set TMPDIR");
        SourceError::Address { name: self.item.name.clone(), what }.into()
    }
}

impl RecordReader for FileReader {
    fn next_record(&mut self) -> Result<Option<Record>, Error> {
        let inner = match self.inner.take() {
            Some(inner) => inner,
            None => self.open()?,
        };
        let next = self.inner.insert(inner).next()?;
        Ok(next.map(|(number, raw)| {
            self.records += 1;
            Record { place: Place { file: 0, number }, raw }
        }))
    }

    fn facts(&self) -> FileFacts {
        FileFacts {
            name: self.item.name.clone(),
            format: self.item.format,
            bytes: self.tally.bytes(),
            sha256: self.tally.sha256(),
            records: self.records,
        }
    }

    fn notes(&self) -> Vec<String> {
        self.inner.iter().filter_map(|inner| inner.note()).collect()
    }
}
