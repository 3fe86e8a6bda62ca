//! What can go wrong with tables and queries.

use std::path::PathBuf;

/// Every error of tables and SQL; each says what, where, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// A name that no table may have.
    #[error(
        "`{name}` cannot name a table: {why}; use letters, digits and _, at most 63, and no digit in front"
    )]
    Name {
        /// What was asked for.
        name: String,
        /// The rule it breaks.
        why: &'static str,
    },
    /// No such table.
    #[error("there is no table `{name}`{}; {}", nearest(near.as_ref()), known("the tables are", tables))]
    NoTable {
        /// What was asked for.
        name: String,
        /// The name that looks most like it.
        near: Option<String>,
        /// The tables there are.
        tables: Vec<String>,
    },
    /// The table has no such snapshot.
    #[error("`{name}` has no snapshot {number}; {}", known("it has", snapshots))]
    NoSnapshot {
        /// The table.
        name: String,
        /// What was asked for.
        number: u64,
        /// The snapshots there are.
        snapshots: Vec<String>,
    },
    /// The name is taken.
    #[error(
        "there is a table `{name}` already; choose another name, or use --replace to make a new snapshot of it"
    )]
    Exists {
        /// The table.
        name: String,
    },
    /// A name that is a file and a table.
    #[error(
        "`{name}` is a table and a file; write `./{name}` for the file or `{name}@{newest}` for the table"
    )]
    Ambiguous {
        /// The name.
        name: String,
        /// The newest snapshot of the table.
        newest: u64,
    },
    /// The store's file is something else.
    #[error("`{}` is not a store of tables: {what}; move it away or choose another workspace", path.display())]
    NotAStore {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// The store was written by a later version of the program.
    #[error("`{}` has format {found}, but this version reads up to {known}; use a newer version", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// The last format that is understood.
        known: i64,
    },
    /// Another process writes.
    #[error("`{}` is being written by another process; try again when it is done", path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// No room.
    #[error("cannot write `{}`: the disk is full; free some space, nothing was changed", path.display())]
    Full {
        /// The file.
        path: PathBuf,
    },
    /// The store cannot be read or written.
    #[error("cannot use `{}`: {what}; check the disk and the file's permissions", path.display())]
    Store {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        what: String,
    },
    /// A record that no table can hold.
    #[error("`{name}`:{number}: {what}")]
    Record {
        /// The file.
        name: String,
        /// Line or row.
        number: u64,
        /// What is wrong and what to do.
        what: String,
    },
    /// A source without rows or columns.
    #[error("{sources} has no {what}, so there is no table to make; give a file with rows")]
    Nothing {
        /// The source.
        sources: String,
        /// `rows` or `columns`.
        what: &'static str,
    },
    /// A table has no such column.
    #[error("`{table}` has no column `{column}`{}; {}", nearest(near.as_ref()), known("its columns are", columns))]
    NoColumn {
        /// The table.
        table: String,
        /// What was asked for.
        column: String,
        /// The name that looks most like it.
        near: Option<String>,
        /// The columns there are.
        columns: Vec<String>,
    },
    /// Parts that a table cannot be split into.
    #[error("cannot split: {what}")]
    Split {
        /// Why not, and what to do.
        what: String,
    },
    /// The file is there already.
    #[error("`{}` exists; choose another name, or use --force to replace it", path.display())]
    FileExists {
        /// The file.
        path: PathBuf,
    },
    /// A file that no table is written to.
    #[error("cannot export to `{}`: {what}", path.display())]
    Export {
        /// The file.
        path: PathBuf,
        /// Why not, and what to do.
        what: String,
    },
    /// A file that the file system does not let be written.
    #[error("cannot write `{}`: {what}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not, and what to do.
        what: String,
    },
    /// SQL that is wrong.
    #[error("the query is wrong: {what}")]
    Sql {
        /// What, where, and what to do.
        what: String,
    },
    /// SQL that is not allowed.
    #[error("the query is refused: {what}")]
    Refused {
        /// What is not allowed, and what to do.
        what: String,
    },
    /// A query that took too much.
    #[error("the query was stopped: {what}")]
    Limit {
        /// Which limit it met, and what to do.
        what: String,
    },
    /// A row of a query that has no JSON form.
    #[error("row {row} of the query: {what}")]
    Value {
        /// One-based row.
        row: u64,
        /// What is wrong and what to do.
        what: String,
    },
}

impl TableError {
    /// Whether the file system is the trouble and not what the user gave.
    pub fn is_io(&self) -> bool {
        matches!(self, Self::Busy { .. } | Self::Full { .. } | Self::Store { .. } | Self::Write { .. })
    }

    pub(super) fn sql(what: impl Into<String>) -> Self {
        Self::Sql { what: what.into() }
    }

    pub(super) fn refused(what: impl Into<String>) -> Self {
        Self::Refused { what: what.into() }
    }

    pub(super) fn limit(what: impl Into<String>) -> Self {
        Self::Limit { what: what.into() }
    }
}

/// The name most like `wanted`, if one is like it at all.
pub(super) fn like<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let wanted = wanted.to_lowercase();
    names
        .into_iter()
        .map(|name| (strsim::jaro_winkler(&wanted, &name.to_lowercase()), name))
        .filter(|(likeness, _)| *likeness >= 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name.to_owned())
}

pub(super) fn nearest(near: Option<&String>) -> String {
    near.map(|name| format!(", perhaps you mean `{name}`")).unwrap_or_default()
}

/// Names in a sentence; a long list is cut, and says so.
pub(super) fn known(intro: &str, names: &[String]) -> String {
    const SHOWN: usize = 20;
    if names.is_empty() {
        return "there are none yet: `tunesmith data load NAME FILE` makes one".to_owned();
    }
    let listed = names.iter().take(SHOWN).map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
    let more = names.len().saturating_sub(SHOWN);
    if more > 0 { format!("{intro} {listed} and {more} more") } else { format!("{intro} {listed}") }
}
