//! What `training_data` may be: files, a table, or a query.

use std::path::Path;

use super::catalog::SnapshotRef;
use super::error::TableError;
use super::name::TableRef;
use super::query::QueryOptions;
use super::sqltext::looks_like_query;
use super::{Tables, catalog};
use crate::error::Error;
use crate::source::{Records, SourceOptions};

/// Where a job's rows come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrainingData {
    /// Files, folders, patterns and addresses.
    Path(Vec<String>),
    /// A table: its newest snapshot, or the one that is named.
    Table(TableRef),
    /// A query that yields the rows.
    Query(String),
}

impl TrainingData {
    /// Tells what a text means.
    ///
    /// - It starts with `select` or `with`, in any case, and white space or `(` follows: a query.
    /// - It is a name such as tables have, or `NAME@2`, and no file or folder has that name: a table, whether it exists
    ///   or not.
    /// - It is such a name, and a file has it: the file, unless `tables` has a table of that name.
    /// - Anything else is a path; so is `./NAME`.
    ///
    /// # Errors
    /// [`TableError::Ambiguous`] for a name that is both a file and a table; a store that cannot be read.
    pub fn parse(text: &str, tables: Option<&Tables>) -> Result<Self, Error> {
        if looks_like_query(text) {
            return Ok(Self::Query(text.to_owned()));
        }
        let path = || Self::Path(vec![text.to_owned()]);
        let Ok(named) = TableRef::parse(text) else { return Ok(path()) };
        if Path::new(text).symlink_metadata().is_err() {
            return Ok(Self::Table(named));
        }
        let snapshots = tables.map(Tables::list).transpose()?.unwrap_or_default();
        match catalog::find(&snapshots, &named) {
            Ok(found) => Err(TableError::Ambiguous { name: text.to_owned(), newest: found.snapshot }.into()),
            Err(_) => Ok(path()),
        }
    }

    /// Whether the store of tables is needed to read it.
    pub fn needs_tables(&self) -> bool {
        !matches!(self, Self::Path(_))
    }
}

/// The records of training data, with the snapshots that they come from (none for files).
///
/// A table or a query gives one [`crate::FileFacts`] of format `Sql`: its name is `NAME@2` or the text of the query, its
/// digest the content hash of the snapshot, or a hash of the query's text and of the snapshots it reads. The rows
/// are those of one moment, whatever is loaded or removed meanwhile. `options` holds for queries alone; training data
/// should be asked for with [`QueryOptions::repeatable`]. `tables` is the workspace's store, if it has one.
///
/// # Errors
/// As [`Records::open`], [`Tables::read`] and [`Tables::query`].
pub fn open_training_data(
    data: &TrainingData,
    tables: Option<&Tables>,
    options: &QueryOptions,
    source: &SourceOptions,
) -> Result<(Records, Vec<SnapshotRef>), Error> {
    let rows = match (data, tables) {
        (TrainingData::Path(uris), _) => return Ok((Records::open(uris, source)?, Vec::new())),
        (TrainingData::Table(table), Some(tables)) => {
            if !(options.may_read)(table.name.as_str()) {
                let what = format!("there is no right to read the table `{}`; ask for it", table.name);
                return Err(TableError::refused(what).into());
            }
            tables.read(table)?
        }
        (TrainingData::Query(sql), Some(tables)) => tables.query(sql, options)?,
        (TrainingData::Table(table), None) => return Err(no_store(table.name.as_str())),
        (TrainingData::Query(_), None) => {
            let what = "there are no tables yet; `tunesmith data load NAME FILE` makes one";
            return Err(TableError::sql(what).into());
        }
    };
    let parents = rows.parents().to_vec();
    Ok((Records::of(vec![Box::new(rows)]), parents))
}

fn no_store(name: &str) -> Error {
    TableError::NoTable { name: name.to_owned(), near: None, tables: Vec::new() }.into()
}
