//! The lines of a text file, streamed.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};

use crate::error::{Error, RowError};

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
        String::from_utf8(bytes)
            .map_err(|e| RowError::InvalidUtf8 { column: e.utf8_error().valid_up_to() + 1 })
    }
}
