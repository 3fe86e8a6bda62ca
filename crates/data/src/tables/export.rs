//! Writes a table to a file that is there whole or not at all.

use std::io::{BufWriter, Write};
use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value};

use super::error::TableError;
use super::name::TableRef;
use super::{TableRows, Tables};
use crate::error::Error;
use crate::source::{Raw, RecordReader as _};

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Exported {
    /// Rows.
    pub rows: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// Values that are null or missing and became empty fields of a CSV file, where a reader takes them for
    /// empty strings.
    pub nulls: u64,
}

impl Tables {
    /// Writes a snapshot as JSONL or CSV, as the file's extension says. A file that exists is only replaced with
    /// `force`. JSONL gives back every value as it was loaded; in CSV everything is text, lists and objects as JSON.
    ///
    /// # Errors
    /// [`TableError::Export`], [`TableError::Write`], [`TableError::FileExists`], and those of [`Tables::find`].
    pub fn export(&self, source: &TableRef, file: &Path, force: bool) -> Result<Exported, Error> {
        let bad = |what: String| TableError::Export { path: file.to_owned(), what };
        let extension = file.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
        let csv = match extension.as_str() {
            "jsonl" => false,
            "csv" => true,
            _ => return Err(bad("the name ends in neither .jsonl nor .csv; choose one".to_owned()).into()),
        };
        if !force && file.symlink_metadata().is_ok() {
            return Err(TableError::FileExists { path: file.to_owned() }.into());
        }
        let rows = self.read(source)?;
        let folder = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let io = |e: std::io::Error| {
            let what = format!("{e}; check the folder, its permissions and the room on the disk");
            Error::Table(TableError::Write { path: file.to_owned(), what })
        };
        let mut temporary = temporary(folder).map_err(io)?;
        let mut exported = Exported { rows: 0, bytes: 0, nulls: 0 };
        let mut out = BufWriter::with_capacity(1 << 16, temporary.as_file_mut());
        if csv {
            write_csv(rows, &mut out, &mut exported, io)
        } else {
            write_jsonl(rows, &mut out, &mut exported, io)
        }?;
        out.flush().map_err(io)?;
        drop(out);
        temporary.as_file().sync_all().map_err(io)?;
        exported.bytes = temporary.as_file().metadata().map_err(io)?.len();
        let persisted = if force { temporary.persist(file) } else { temporary.persist_noclobber(file) };
        match persisted {
            Ok(_) => Ok(exported),
            Err(e) if e.error.kind() == std::io::ErrorKind::AlreadyExists => {
                Err(TableError::FileExists { path: file.to_owned() }.into())
            }
            Err(e) => Err(io(e.error)),
        }
    }
}

/// A file of the usual permissions beside the one that is to be.
fn temporary(folder: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".tunesmith-").suffix(".tmp");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        // The user's mask takes its share.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder)
}

fn write_jsonl(
    mut rows: TableRows,
    out: &mut impl Write,
    exported: &mut Exported,
    io: impl Fn(std::io::Error) -> Error,
) -> Result<(), Error> {
    while let Some(row) = next(&mut rows)? {
        serde_json::to_writer(&mut *out, &row).map_err(|e| io(e.into()))?;
        out.write_all(b"\n").map_err(&io)?;
        exported.rows += 1;
    }
    Ok(())
}

fn write_csv(
    mut rows: TableRows,
    out: &mut impl Write,
    exported: &mut Exported,
    io: impl Fn(std::io::Error) -> Error,
) -> Result<(), Error> {
    let columns = rows.columns().to_vec();
    let mut writer = csv::Writer::from_writer(out);
    let failed = |e: csv::Error| io(std::io::Error::other(e));
    writer.write_record(&columns).map_err(failed)?;
    while let Some(row) = next(&mut rows)? {
        for column in &columns {
            let value = row.get(column).unwrap_or(&Value::Null);
            exported.nulls += u64::from(value.is_null());
            writer.write_field(field(value)).map_err(failed)?;
        }
        writer.write_record(None::<&[u8]>).map_err(failed)?;
        exported.rows += 1;
    }
    writer.flush().map_err(io)
}

/// A value as the text of a CSV field.
fn field(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn next(rows: &mut TableRows) -> Result<Option<Map<String, Value>>, Error> {
    match rows.next_record()? {
        Some(record) => {
            let number = record.place.number;
            let object = record.raw.and_then(Raw::into_object);
            let bad = |e: crate::error::RowError| TableError::Value { row: number, what: e.to_string() };
            Ok(Some(object.map_err(bad)?))
        }
        None => Ok(None),
    }
}
