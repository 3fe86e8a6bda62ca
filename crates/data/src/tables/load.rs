//! Loads records into a new snapshot, all of them or none.

use std::ops::ControlFlow;

use rayon::prelude::*;

use super::canonical::write_row;
use super::catalog::{self, Origin, Snapshot, SnapshotRef, Written};
use super::error::TableError;
use super::name::{TableName, TableRef};
use super::writer::{Fault, Ready, SnapshotWriter};
use super::{Tables, store};
use crate::error::{Error, RowError};
use crate::source::{Raw, Record, Records};

/// Records that are taken at once, and bytes.
const BATCH: (usize, usize) = (8192, 16 << 20);

/// What the records of a load are, for the lineage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadOrigin {
    /// Files, which the records themselves name.
    Files,
    /// A query over these snapshots.
    Query {
        /// Its text.
        sql: String,
        /// What it reads: [`super::TableRows::parents`].
        parents: Vec<SnapshotRef>,
    },
}

impl Tables {
    /// Loads records as a new table, or with `replace` as a new snapshot of it: in one transaction, so that after any
    /// failure, the end of the process included, the store is as it was.
    ///
    /// `progress` is told the rows loaded so far after every batch, and may break the load off.
    ///
    /// # Errors
    /// The first record that cannot be read or stored, with its place; [`TableError::Exists`];
    /// [`TableError::Nothing`] for a source without rows; a store that cannot be written. `Ok(None)` when `progress`
    /// broke it off.
    pub fn load(
        &mut self,
        name: &TableName,
        records: &mut Records,
        origin: LoadOrigin,
        replace: bool,
        mut progress: impl FnMut(u64) -> ControlFlow<()>,
    ) -> Result<Option<Snapshot>, Error> {
        let path = self.path.clone();
        let failed = |e| store::fault(&path, e);
        let transaction = self.write()?;
        catalog::check_free(&transaction, name, replace)?;
        let id = catalog::next_id(&transaction).map_err(failed)?;
        let mut writer = SnapshotWriter::new(&transaction, id);
        loop {
            let batch = records.next_batch(BATCH.0, BATCH.1)?;
            if batch.is_empty() {
                break;
            }
            let ready: Vec<_> = batch.into_par_iter().map(|record| (record.place, prepare(record))).collect();
            let mut rows = Vec::with_capacity(ready.len());
            let mut places = Vec::with_capacity(ready.len());
            for (place, row) in ready {
                rows.push(row.map_err(|fault| Error::row(records, place, fault))?);
                places.push(place);
            }
            writer.push(&rows).map_err(|fault| match fault {
                Fault::Row(at, what) => {
                    let (name, number) = (records.name(places[at]), places[at].number);
                    TableError::Record { name, number, what }.into()
                }
                Fault::Sqlite(error) => failed(error),
            })?;
            if progress(writer.rows()).is_break() {
                return Ok(None);
            }
        }
        let written = writer.finish().map_err(failed)?;
        let files = records.files();
        check_something(&written, || {
            files.iter().map(|f| format!("`{}`", f.name)).collect::<Vec<_>>().join(", ")
        })?;
        let origin = match origin {
            LoadOrigin::Files => Origin::Files { files },
            LoadOrigin::Query { sql, parents } => Origin::Query { sql, parents },
        };
        catalog::enter(&transaction, id, name, &written, &origin).map_err(failed)?;
        transaction.commit().map_err(failed)?;
        self.find(&TableRef { name: name.clone(), snapshot: None }).map(Some)
    }
}

/// A snapshot has rows and columns.
fn check_something(written: &Written, sources: impl FnOnce() -> String) -> Result<(), TableError> {
    let what = match (written.rows, written.columns.len()) {
        (0, _) => "rows",
        (_, 0) => "columns",
        _ => return Ok(()),
    };
    Err(TableError::Nothing { sources: sources(), what })
}

fn prepare(record: Record) -> Result<Ready, RowError> {
    let object = record.raw.and_then(Raw::into_object)?;
    let mut canonical = Vec::new();
    write_row(&object, &mut canonical);
    Ok(Ready { object, canonical })
}
