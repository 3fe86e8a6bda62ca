//! Parquet files, row by row, one row group's pages at a time.

use std::cell::Cell;
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use parquet::record::reader::{ReaderIter, TreeBuilder};

use super::parquet_value::{check_schema, convert};
use super::snippet::shown;
use super::{Inner, Limits, Numbered, Raw, SourceError};
use crate::error::{Error, RowError};

/// Rows that are decoded at a time. Values are materialised only when a row is asked for.
const BATCH: usize = 256;

pub(super) struct Parquet {
    name: String,
    reader: SerializedFileReader<File>,
    rows: Option<ReaderIter>,
    group: usize,
    row: u64,
    limits: Limits,
    out: u64,
}

impl Parquet {
    pub(super) fn open(mut file: File, name: &str, limits: &Limits) -> Result<Self, Error> {
        let mut head = [0; 4];
        let magic = file.read_exact(&mut head).and_then(|()| file.rewind());
        if magic.is_err() || &head != b"PAR1" {
            let name = name.to_owned();
            let found = super::format::sniff(&head).unwrap_or("no Parquet file");
            let fix = "give it the ending of its own format, or write it again".to_owned();
            return Err(SourceError::WrongKind { name, found, says: "Parquet", fix }.into());
        }
        let at = || "at its end, where its columns are described".to_owned();
        let reader = guarded(|| SerializedFileReader::new(file)).map_err(|e| damaged(name, at(), e))?;
        let schema = reader.metadata().file_metadata().schema();
        check_schema(schema).map_err(|(column, kind)| SourceError::ColumnType {
            name: name.to_owned(),
            column: shown(&column),
            kind,
        })?;
        for group in reader.metadata().row_groups() {
            for column in group.columns() {
                check_size(name, column, limits)?;
            }
        }
        let (name, limits) = (name.to_owned(), limits.clone());
        Ok(Self { name, reader, rows: None, group: 0, row: 0, limits, out: 0 })
    }

    fn rows_of(&self, group: usize) -> Result<ReaderIter, String> {
        guarded(|| {
            let group = self.reader.get_row_group(group)?;
            let schema = self.reader.metadata().file_metadata().schema_descr_ptr();
            TreeBuilder::new().with_batch_size(BATCH).as_iter(schema, &*group)
        })
    }

    fn damaged(&self, what: String) -> Error {
        damaged(&self.name, format!("in row group {}, behind row {}", self.group, self.row), what)
    }
}

impl Inner for Parquet {
    fn next(&mut self) -> Result<Option<Numbered>, Error> {
        let fields = loop {
            if let Some(rows) = &mut self.rows {
                match guarded(|| rows.next().transpose()) {
                    Ok(Some(row)) => break row.into_columns(),
                    Ok(None) => self.rows = None,
                    Err(what) => return Err(self.damaged(what)),
                }
            } else if self.group < self.reader.num_row_groups() {
                self.group += 1;
                self.rows = Some(self.rows_of(self.group - 1).map_err(|what| self.damaged(what))?);
            } else {
                return Ok(None);
            }
        };
        self.row += 1;
        let schema = self.reader.metadata().file_metadata().schema();
        let object = match convert(fields, Some(schema)) {
            Ok(object) => object,
            Err((column, what)) => {
                return Ok(Some((self.row, Err(RowError::Cell { column: shown(&column), what }))));
            }
        };
        let raw = Raw::Object(object);
        self.out += raw.bytes() as u64;
        if self.out > self.limits.output_bytes {
            let what = format!(
                "its rows take more than {} bytes; split the file or raise the bound",
                self.limits.output_bytes
            );
            return Err(SourceError::TooLarge { name: self.name.clone(), what }.into());
        }
        Ok(Some((self.row, Ok(raw))))
    }
}

fn check_size(name: &str, column: &ColumnChunkMetaData, limits: &Limits) -> Result<(), SourceError> {
    let (packed, unpacked) =
        (column.compressed_size().max(1) as u64, column.uncompressed_size().max(0) as u64);
    if unpacked <= limits.ratio_after || unpacked / limits.ratio <= packed {
        return Ok(());
    }
    let what = format!(
        "column `{}` unpacks to more than {} times its size ({unpacked} bytes from {packed}), as only bombs do; \
         write the file without compression if it is sound",
        column.column_path().string(),
        limits.ratio
    );
    Err(SourceError::TooLarge { name: name.to_owned(), what })
}

/// The library checks much, but not all, of a damaged file before it trusts it: a panic there is a damaged file too.
fn guarded<T>(read: impl FnOnce() -> parquet::errors::Result<T>) -> Result<T, String> {
    static HOOK: Once = Once::new();
    // Such a panic is answered with a sentence, so its own report would only confuse.
    HOOK.call_once(|| {
        let usual = take_hook();
        set_hook(Box::new(move |info| {
            if !GUARDED.get() {
                usual(info);
            }
        }));
    });
    GUARDED.set(true);
    let result = catch_unwind(AssertUnwindSafe(read));
    GUARDED.set(false);
    match result {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(_) => Err("its pages contradict each other".to_owned()),
    }
}

thread_local! {
    /// Whether this thread is inside [`guarded`].
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

fn damaged(name: &str, at: String, what: String) -> Error {
    // The library may quote the file's own bytes.
    let what = what.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
    SourceError::Parquet { name: name.to_owned(), at, what }.into()
}
