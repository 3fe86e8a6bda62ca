//! What the store knows of its tables: snapshots, their columns, and where their rows came from.

use rusqlite::{Connection, OptionalExtension as _, Row, params};
use serde::{Deserialize, Serialize};

use super::error::{TableError, like};
use super::kind::Kind;
use super::name::{TableName, TableRef, quoted};
use crate::error::Error;
use crate::source::FileFacts;

/// A column of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// The name, as in the source.
    pub name: String,
    /// What it holds.
    pub kind: Kind,
    /// How many values of each kind there are: more than one where a mixture was widened.
    pub seen: Vec<(Kind, u64)>,
    /// Rows in which it is null.
    pub nulls: u64,
    /// Rows that do not have it; null in SQL.
    pub missing: u64,
}

impl Column {
    /// What was mixed in the column, when its kind is none that every value has.
    pub fn mixture(&self) -> Option<String> {
        let kinds: Vec<_> = self.seen.iter().map(|(kind, n)| format!("{n} {}", kind.as_str())).collect();
        (kinds.len() > 1).then(|| kinds.join(", "))
    }
}

/// A snapshot that something was made from: enough to find it, and to know whether it is still the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SnapshotRef {
    /// The table.
    pub table: String,
    /// The snapshot.
    pub snapshot: u64,
    /// Its content hash.
    pub sha256: String,
}

/// Where the rows of a snapshot came from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "lowercase")]
pub enum Origin {
    /// Files.
    Files {
        /// Every file with its digest.
        files: Vec<FileFacts>,
    },
    /// A query.
    Query {
        /// Its text.
        sql: String,
        /// The snapshots it read.
        parents: Vec<SnapshotRef>,
    },
    /// A part of another table.
    Split {
        /// What was split.
        parent: SnapshotRef,
        /// The names of all parts and their weights, which add up to 1.
        parts: Vec<(String, f64)>,
        /// Seed of the split.
        seed: u64,
        /// The column whose equal values stay together; whole rows otherwise.
        by: Option<String>,
    },
}

/// One immutable snapshot of a table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Snapshot {
    /// The table.
    pub name: String,
    /// The snapshot's number: 1 for the first, never used again while the table exists.
    pub snapshot: u64,
    /// Whether the bare name means this one.
    pub newest: bool,
    /// When it was made, RFC 3339 in UTC.
    pub created: String,
    /// Rows.
    pub rows: u64,
    /// Bytes of the rows as JSON.
    pub bytes: u64,
    /// Hex digest of the rows in their order, whatever file format they came from.
    pub sha256: String,
    /// The columns, in the order in which they first appeared.
    pub columns: Vec<Column>,
    /// Where the rows came from.
    pub origin: Origin,
    /// The table inside the database.
    #[serde(skip)]
    pub(super) physical: String,
}

impl Snapshot {
    /// How other things refer to it.
    pub fn reference(&self) -> SnapshotRef {
        SnapshotRef { table: self.name.clone(), snapshot: self.snapshot, sha256: self.sha256.clone() }
    }

    /// `NAME@2`.
    pub fn label(&self) -> String {
        format!("{}@{}", self.name, self.snapshot)
    }

    /// The column of this name, in any case.
    ///
    /// # Errors
    /// [`TableError::NoColumn`].
    pub(super) fn column(&self, name: &str) -> Result<&Column, TableError> {
        self.columns.iter().find(|c| c.name.eq_ignore_ascii_case(name)).ok_or_else(|| TableError::NoColumn {
            table: self.name.clone(),
            column: name.to_owned(),
            near: like(name, self.columns.iter().map(|c| c.name.as_str())),
            columns: self.columns.iter().map(|c| c.name.clone()).collect(),
        })
    }
}

/// What a finished snapshot consists of.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) rows: u64,
    pub(super) bytes: u64,
    pub(super) sha256: String,
    pub(super) columns: Vec<Column>,
    pub(super) physical: String,
}

/// Every snapshot of every table, by name, the oldest first.
pub(super) fn all(connection: &Connection) -> rusqlite::Result<Vec<Snapshot>> {
    let mut statement = connection.prepare(
        "SELECT t.name, s.number, s.number = max(s.number) OVER (PARTITION BY t.id), s.created, s.rows, s.bytes,
                s.sha256, s.columns, s.origin, s.physical
         FROM _tunesmith_snapshot s JOIN _tunesmith_table t ON t.id = s.table_id ORDER BY t.name, s.number",
    )?;
    statement.query_map([], read)?.collect()
}

fn read(row: &Row<'_>) -> rusqlite::Result<Snapshot> {
    Ok(Snapshot {
        name: row.get(0)?,
        snapshot: row.get::<_, i64>(1)? as u64,
        newest: row.get(2)?,
        created: row.get(3)?,
        rows: row.get::<_, i64>(4)? as u64,
        bytes: row.get::<_, i64>(5)? as u64,
        sha256: row.get(6)?,
        columns: from_json(7, &row.get::<_, String>(7)?)?,
        origin: from_json(8, &row.get::<_, String>(8)?)?,
        physical: row.get(9)?,
    })
}

fn from_json<T: serde::de::DeserializeOwned>(column: usize, text: &str) -> rusqlite::Result<T> {
    serde_json::from_str(text).map_err(|e| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(e))
    })
}

/// The snapshot that is meant.
pub(super) fn find(snapshots: &[Snapshot], wanted: &TableRef) -> Result<Snapshot, TableError> {
    let name = wanted.name.as_str();
    let mut own = snapshots.iter().filter(|s| s.name.eq_ignore_ascii_case(name)).peekable();
    if own.peek().is_none() {
        return Err(no_table(name, snapshots.iter()));
    }
    let found = match wanted.snapshot {
        None => own.clone().find(|s| s.newest),
        Some(number) => own.clone().find(|s| s.snapshot == number),
    };
    found.cloned().ok_or_else(|| TableError::NoSnapshot {
        name: name.to_owned(),
        number: wanted.snapshot.unwrap_or_default(),
        snapshots: own.map(Snapshot::label).collect(),
    })
}

/// That there is no such table, and which there are.
pub(super) fn no_table<'a>(name: &str, snapshots: impl Iterator<Item = &'a Snapshot>) -> TableError {
    let tables: Vec<String> = snapshots.filter(|s| s.newest).map(|s| s.name.clone()).collect();
    let near = like(name, tables.iter().map(String::as_str));
    TableError::NoTable { name: name.to_owned(), near, tables }
}

/// The number that a new snapshot's table in the database may bear.
pub(super) fn next_id(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("SELECT coalesce(max(id), 0) + 1 FROM _tunesmith_snapshot", [], |r| r.get(0))
}

/// Refuses a name that is taken, unless it is to have a new snapshot.
pub(super) fn check_free(connection: &Connection, name: &TableName, replace: bool) -> Result<(), Error> {
    let taken =
        connection.query_row("SELECT count(*) FROM _tunesmith_table WHERE name = ?1", [name.as_str()], |r| {
            r.get::<_, i64>(0)
        });
    match taken {
        Ok(0) => Ok(()),
        Ok(_) if replace => Ok(()),
        Ok(_) => Err(TableError::Exists { name: name.to_string() }.into()),
        Err(e) => Err(TableError::sql(super::store::words(&e)).into()),
    }
}

/// Enters a finished snapshot and lets the name mean it.
pub(super) fn enter(
    connection: &Connection,
    id: i64,
    name: &TableName,
    written: &Written,
    origin: &Origin,
) -> rusqlite::Result<()> {
    connection.execute(
        "INSERT INTO _tunesmith_table (name, next) VALUES (?1, 1) ON CONFLICT DO NOTHING",
        [name.as_str()],
    )?;
    let (table, number) = connection.query_row(
        "UPDATE _tunesmith_table SET next = next + 1 WHERE name = ?1 RETURNING id, next - 1",
        [name.as_str()],
        |r| Ok((r.get::<_, i64>(0)?, r.get::<_, i64>(1)?)),
    )?;
    let json = |e| rusqlite::Error::ToSqlConversionFailure(Box::new(e));
    connection.execute(
        "INSERT INTO _tunesmith_snapshot
         (id, table_id, number, created, rows, bytes, sha256, columns, origin, physical)
         VALUES (?1, ?2, ?3, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), ?4, ?5, ?6, ?7, ?8, ?9)",
        params![
            id,
            table,
            number,
            written.rows as i64,
            written.bytes as i64,
            written.sha256,
            serde_json::to_string(&written.columns).map_err(json)?,
            serde_json::to_string(origin).map_err(json)?,
            written.physical,
        ],
    )?;
    let stored: String =
        connection.query_row("SELECT name FROM _tunesmith_table WHERE id = ?1", [table], |r| r.get(0))?;
    make_view(connection, &format!("{stored}@{number}"), &written.columns, &written.physical)?;
    make_view(connection, &stored, &written.columns, &written.physical)
}

fn make_view(
    connection: &Connection,
    name: &str,
    columns: &[Column],
    physical: &str,
) -> rusqlite::Result<()> {
    let names = columns.iter().map(|c| quoted(&c.name)).collect::<Vec<_>>().join(", ");
    let (view, table) = (quoted(name), quoted(physical));
    connection.execute_batch(&format!(
        "DROP VIEW IF EXISTS {view}; CREATE VIEW {view} ({names}) AS SELECT {names} FROM {table}"
    ))
}

/// Takes a snapshot out; the name then means the newest one left.
pub(super) fn remove(connection: &Connection, snapshot: &Snapshot) -> rusqlite::Result<()> {
    let name = snapshot.name.as_str();
    connection.execute_batch(&format!(
        "DROP VIEW IF EXISTS {}; DROP VIEW IF EXISTS {}; DROP TABLE {}",
        quoted(&snapshot.label()),
        quoted(name),
        quoted(&snapshot.physical)
    ))?;
    connection.execute("DELETE FROM _tunesmith_snapshot WHERE physical = ?1", [&snapshot.physical])?;
    let mut newest = None;
    for left in all(connection)? {
        if left.name == name && left.newest {
            newest = Some(left);
        }
    }
    match newest {
        Some(left) => make_view(connection, name, &left.columns, &left.physical),
        None => {
            connection.execute("DELETE FROM _tunesmith_table WHERE name = ?1", [name]).optional().map(|_| ())
        }
    }
}
