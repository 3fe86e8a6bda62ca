//! Tables in text: a header, then one record a line, with quoted fields.

use std::collections::HashSet;
use std::io::BufRead;

use csv::{ByteRecord, ErrorKind, Reader, ReaderBuilder};
use serde_json::{Map, Value};

use super::guard::Guard;
use super::snippet::{shown, snippet};
use super::stored::{Origin, Text};
use super::{Inner, Numbered, Raw, SourceError};
use crate::error::{Error, RowError};

pub(super) struct Table {
    origin: Origin,
    reader: Reader<Guard<Box<dyn BufRead + Send>>>,
    names: Vec<String>,
    record: ByteRecord,
    note: Option<String>,
}

impl Table {
    /// Reads the header. `delimiter`: as the ending says; a comma may turn out to be a semicolon.
    pub(super) fn open(text: Text, delimiter: u8, limit: usize) -> Result<Self, Error> {
        let Text { mut reader, origin } = text;
        let head = reader.fill_buf().map_err(|e| origin.broken(e, 0))?;
        let semicolon = delimiter == b',' && has_semicolons(head);
        let delimiter = if semicolon { b';' } else { delimiter };
        let note =
            semicolon.then(|| format!("`{}`: fields are separated by `;`, as its header shows", origin.name));
        let guard = Guard::new(reader, delimiter, limit);
        let mut builder = ReaderBuilder::new();
        builder.has_headers(false).flexible(true).delimiter(delimiter);
        let reader = builder.from_reader(guard);
        let mut this = Self { origin, reader, names: Vec::new(), record: ByteRecord::new(), note };
        if let Some(line) = this.advance()? {
            this.names = this.header(line)?;
        }
        Ok(this)
    }

    /// The line on which the record just read starts; nothing at the end.
    fn advance(&mut self) -> Result<Option<u64>, Error> {
        match self.reader.read_byte_record(&mut self.record) {
            Ok(false) => Ok(None),
            Ok(true) => Ok(Some(self.reader.get_mut().take_start())),
            Err(error) => Err(self.fault(error)),
        }
    }

    fn fault(&self, error: csv::Error) -> Error {
        let guard = self.reader.get_ref();
        if let Some((line, what)) = &guard.fault {
            let (name, line, what) = (self.origin.name.clone(), *line, what.clone());
            return SourceError::Structure { name, line, what }.into();
        }
        let text = error.to_string();
        match error.into_kind() {
            ErrorKind::Io(e) => self.origin.broken(e, guard.line() - 1),
            _ => self.structure(guard.line(), format!("not a table ({text}); export it again")),
        }
    }

    fn structure(&self, line: u64, what: String) -> Error {
        SourceError::Structure { name: self.origin.name.clone(), line, what }.into()
    }

    fn header(&self, line: u64) -> Result<Vec<String>, Error> {
        let mut seen = HashSet::new();
        let mut names = Vec::new();
        for (i, field) in self.record.iter().enumerate() {
            let Ok(name) = std::str::from_utf8(field) else {
                let what = format!(
                    "the name of column {} (`{}`) is not valid UTF-8; save the file as UTF-8",
                    i + 1,
                    snippet(field, 0)
                );
                return Err(self.structure(line, what));
            };
            if name.contains('\0') {
                let what = format!("the name of column {} has a NUL byte; save the file as UTF-8", i + 1);
                return Err(self.structure(line, what));
            }
            if !seen.insert(name) {
                let what = format!("the header names the column `{}` twice; rename one", shown(name));
                return Err(self.structure(line, what));
            }
            names.push(name.to_owned());
        }
        Ok(names)
    }

    fn row(&self) -> Result<Raw, RowError> {
        let (found, expected) = (self.record.len(), self.names.len());
        if found != expected {
            return Err(RowError::Ragged { found, expected });
        }
        let cells = self.names.iter().zip(&self.record);
        let row = cells.map(|(name, cell)| Ok((name.clone(), Value::String(text(name, cell)?))));
        row.collect::<Result<Map<_, _>, RowError>>().map(Raw::Object)
    }
}

impl Inner for Table {
    fn next(&mut self) -> Result<Option<Numbered>, Error> {
        let line = self.advance()?;
        Ok(line.map(|line| (line, self.row())))
    }

    fn note(&self) -> Option<String> {
        self.note.clone()
    }
}

fn text(name: &str, cell: &[u8]) -> Result<String, RowError> {
    let fault = |i: usize, what: &str| RowError::Cell {
        column: shown(name),
        what: format!("has {what} at byte {} of the field (near `{}`)", i + 1, snippet(cell, i))
            + "; save the file as UTF-8",
    };
    if let Some(i) = cell.iter().position(|&b| b == 0) {
        return Err(fault(i, "a NUL byte"));
    }
    match std::str::from_utf8(cell) {
        Ok(text) => Ok(text.to_owned()),
        Err(e) => Err(fault(e.valid_up_to(), "bytes that are not valid UTF-8")),
    }
}

/// Whether the first line separates its names by semicolons: it has some outside quotes, and no comma.
fn has_semicolons(head: &[u8]) -> bool {
    let (mut quoted, mut semicolons) = (false, 0);
    for &byte in head {
        match byte {
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'\n' | b'\r' => break,
            b',' => return false,
            b';' => semicolons += 1,
            _ => {}
        }
    }
    semicolons > 0
}
