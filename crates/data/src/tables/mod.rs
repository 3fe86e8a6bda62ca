//! Named tables: immutable snapshots of rows in one SQLite file per workspace, and SQL over them.
//!
//! `_tunesmith_table` and `_tunesmith_snapshot` are the catalogue; the rows of a snapshot lie in a table
//! `_tunesmith_rows_…` of their own. Two views make them readable: `NAME@2` is the second snapshot of a table, `NAME` its
//! newest. A snapshot is written in one transaction and never changed, so a load that fails or is killed leaves
//! nothing behind.

mod canonical;
mod catalog;
mod error;
mod export;
mod guard;
mod kind;
mod load;
mod name;
mod query;
mod split;
mod sqltext;
mod store;
mod stream;
mod training;
mod writer;

use std::path::{Path, PathBuf};

use rusqlite::Connection;

pub use catalog::{Column, Origin, Snapshot, SnapshotRef};
pub use error::TableError;
pub use export::Exported;
pub use guard::MayRead;
pub use kind::Kind;
pub use load::LoadOrigin;
pub use name::{TableName, TableRef};
pub use query::{QueryLimits, QueryOptions};
pub use split::SplitOptions;
pub use stream::TableRows;
pub use training::{TrainingData, open_training_data};

use crate::error::Error;

/// The tables of a workspace.
#[derive(Debug)]
pub struct Tables {
    path: PathBuf,
    connection: Connection,
}

impl Tables {
    /// Opens the store, making the file and its folder where there are none.
    ///
    /// # Errors
    /// A file that is no store, or one of a later version; a file system that refuses.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Ok(Self { path: path.to_owned(), connection: store::open(path)? })
    }

    /// Opens the store if there is one.
    ///
    /// # Errors
    /// As [`Tables::open`].
    pub fn open_existing(path: &Path) -> Result<Option<Self>, Error> {
        match path.try_exists() {
            Ok(false) => Ok(None),
            Ok(true) => Self::open(path).map(Some),
            Err(e) => Err(Error::io(path, e)),
        }
    }

    /// The store's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every snapshot of every table, by name, the oldest first.
    ///
    /// # Errors
    /// A store that cannot be read.
    pub fn list(&self) -> Result<Vec<Snapshot>, Error> {
        catalog::all(&self.connection).map_err(|e| store::fault(&self.path, e))
    }

    /// What is known of a table's snapshot.
    ///
    /// # Errors
    /// [`TableError::NoTable`], [`TableError::NoSnapshot`].
    pub fn find(&self, wanted: &TableRef) -> Result<Snapshot, Error> {
        Ok(catalog::find(&self.list()?, wanted)?)
    }

    /// The rows of a snapshot, in order, each with exactly the values and columns that its source had.
    ///
    /// # Errors
    /// As [`Tables::find`].
    pub fn read(&self, wanted: &TableRef) -> Result<TableRows, Error> {
        query::read_table(&self.path, wanted)
    }

    /// Runs one statement that reads, on a connection that can do nothing else.
    ///
    /// A result column that is a table's column keeps its kind. An expression gives a string, a number or null; an
    /// alias that ends in `::json` or `::boolean` says that it is more: `json_array(a, b) AS "pair::json"`.
    ///
    /// # Errors
    /// [`TableError::Sql`] for a mistake, [`TableError::Refused`] for what is not allowed, [`TableError::Limit`] and
    /// [`TableError::Value`], also while the rows are read.
    pub fn query(&self, sql: &str, options: &QueryOptions) -> Result<TableRows, Error> {
        query::query(&self.path, sql, options)
    }

    /// Removes a table with all its snapshots, or one snapshot of it; gives what was removed.
    ///
    /// # Errors
    /// As [`Tables::find`], and a store that cannot be written.
    pub fn remove(&mut self, wanted: &TableRef) -> Result<Vec<Snapshot>, Error> {
        let path = self.path.clone();
        let failed = |e| store::fault(&path, e);
        let transaction = self.write()?;
        let all = catalog::all(&transaction).map_err(failed)?;
        let newest = catalog::find(&all, wanted)?;
        let mut removed = all;
        removed.retain(|s| s.name == newest.name && wanted.snapshot.is_none_or(|n| n == s.snapshot));
        for snapshot in &removed {
            catalog::remove(&transaction, snapshot).map_err(failed)?;
        }
        transaction.commit().map_err(failed)?;
        store::give_back(&self.connection);
        Ok(removed)
    }

    /// A transaction that writes.
    fn write(&mut self) -> Result<rusqlite::Transaction<'_>, Error> {
        let behavior = rusqlite::TransactionBehavior::Immediate;
        self.connection.transaction_with_behavior(behavior).map_err(|e| store::fault(&self.path, e))
    }
}
