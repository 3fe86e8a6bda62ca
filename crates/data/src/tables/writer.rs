//! Writes the rows of one snapshot, whose columns and kinds are only known once all rows are seen.
//!
//! Rows go into a table with the columns and kinds known so far. When a batch brings a new column or widens a kind,
//! a new table is begun; the end copies several tables into one, with every value turned into the final kind. So no
//! row is read twice from its source, no value is ever stored in a column that does not take it as it is, and the
//! common case, where the first batch tells the truth, costs nothing.

use std::collections::{BTreeMap, HashMap};

use rusqlite::types::ToSqlOutput;
use rusqlite::{Connection, Statement};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::catalog::{Column, Written};
use super::kind::{self, Kind};
use super::name::{RESERVED, quoted};

/// Most columns of a table: SQLite's limit, and room for the store's own.
const MOST_COLUMNS: usize = 1990;

/// The column that keeps the order of the rows.
pub(super) const ROW: &str = "_tunesmith_row";

/// The column that tells null from missing: the positions of the columns that a row does not have, as `3,7`.
pub(super) const MISSING: &str = "_tunesmith_missing";

/// A row and its canonical bytes.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) object: Map<String, Value>,
    pub(super) canonical: Vec<u8>,
}

/// Why rows cannot be written.
#[derive(Debug)]
pub(super) enum Fault {
    /// The row at this position of the batch cannot be stored.
    Row(usize, String),
    /// The store failed.
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

/// What is known of a column so far.
#[derive(Debug)]
struct Growing {
    name: String,
    kind: Option<Kind>,
    seen: BTreeMap<Kind, u64>,
    nulls: u64,
    present: u64,
}

/// A table that rows went into, and the kinds of its columns.
#[derive(Debug)]
struct Segment {
    physical: String,
    kinds: Vec<Kind>,
}

pub(super) struct SnapshotWriter<'c> {
    connection: &'c Connection,
    id: i64,
    columns: Vec<Growing>,
    /// Positions by lower-case name, which is how SQL compares them.
    positions: HashMap<String, usize>,
    segments: Vec<Segment>,
    /// Tables begun, which numbers them.
    made: usize,
    insert: Option<Statement<'c>>,
    digest: Sha256,
    rows: u64,
    bytes: u64,
}

impl<'c> SnapshotWriter<'c> {
    pub(super) fn new(connection: &'c Connection, id: i64) -> Self {
        Self {
            connection,
            id,
            columns: Vec::new(),
            positions: HashMap::new(),
            segments: Vec::new(),
            made: 0,
            insert: None,
            digest: Sha256::new(),
            rows: 0,
            bytes: 0,
        }
    }

    /// A writer that has seen these columns: parts of a table have the columns and kinds of the whole.
    pub(super) fn with_columns(connection: &'c Connection, id: i64, columns: &[Column]) -> Self {
        let mut writer = Self::new(connection, id);
        for column in columns {
            writer.positions.insert(column.name.to_ascii_lowercase(), writer.columns.len());
            writer.columns.push(Growing {
                name: column.name.clone(),
                kind: Some(column.kind),
                seen: BTreeMap::new(),
                nulls: 0,
                present: 0,
            });
        }
        writer
    }

    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    pub(super) fn push(&mut self, batch: &[Ready]) -> Result<(), Fault> {
        for (i, row) in batch.iter().enumerate() {
            self.learn(&row.object).map_err(|what| Fault::Row(i, what))?;
        }
        let kinds = self.kinds();
        if self.segments.last().is_none_or(|s| s.kinds != kinds) {
            self.begin(kinds)?;
        }
        for (i, row) in batch.iter().enumerate() {
            self.insert(&row.object).map_err(|error| match error.sqlite_error_code() {
                Some(rusqlite::ErrorCode::TooBig) => {
                    Fault::Row(i, "the row is larger than 72 MiB; split it".to_owned())
                }
                _ => Fault::Sqlite(error),
            })?;
            self.digest.update(&row.canonical);
            self.digest.update(b"\n");
            self.rows += 1;
            self.bytes += row.canonical.len() as u64 + 1;
        }
        Ok(())
    }

    /// Takes note of the columns and kinds of a row.
    fn learn(&mut self, row: &Map<String, Value>) -> Result<(), String> {
        for (expected, (name, value)) in row.iter().enumerate() {
            let at = match self.position(name, expected) {
                Some(at) => at,
                None => self.add(name)?,
            };
            let column = &mut self.columns[at];
            if column.name != *name {
                return Err(format!(
                    "the columns `{}` and `{name}` differ only in case, which SQL does not tell apart; rename one",
                    column.name
                ));
            }
            column.present += 1;
            match Kind::of(value) {
                None => column.nulls += 1,
                Some(kind) => {
                    *column.seen.entry(kind).or_default() += 1;
                    column.kind = Some(column.kind.map_or(kind, |known| known.with(kind)));
                }
            }
        }
        Ok(())
    }

    /// Rows mostly have their columns in one order, so that the place where a name is expected is looked at first.
    fn position(&self, name: &str, expected: usize) -> Option<usize> {
        match self.columns.get(expected) {
            Some(column) if column.name == name => Some(expected),
            _ => self.positions.get(&name.to_ascii_lowercase()).copied(),
        }
    }

    fn add(&mut self, name: &str) -> Result<usize, String> {
        let lower = name.to_ascii_lowercase();
        let bad = if name.is_empty() {
            "is empty"
        } else if name.contains('\0') {
            "contains a NUL character"
        } else if lower.starts_with(RESERVED) {
            "begins with `_tunesmith_`, which is reserved"
        } else if lower.ends_with("::json") || lower.ends_with("::boolean") {
            "ends in a type, which queries use to tell one"
        } else if self.columns.len() == MOST_COLUMNS {
            return Err(format!("there are more than {MOST_COLUMNS} columns; put some into one object"));
        } else {
            let at = self.columns.len();
            self.positions.insert(lower, at);
            let (name, seen) = (name.to_owned(), BTreeMap::new());
            self.columns.push(Growing { name, kind: None, seen, nulls: 0, present: 0 });
            return Ok(at);
        };
        Err(format!("the column name `{}` {bad}; rename the column", name.escape_debug()))
    }

    fn kinds(&self) -> Vec<Kind> {
        self.columns.iter().map(|c| c.kind.unwrap_or(Kind::Text)).collect()
    }

    /// Begins a table for the columns known by now.
    fn begin(&mut self, kinds: Vec<Kind>) -> Result<(), rusqlite::Error> {
        self.insert = None;
        let physical = format!("{RESERVED}rows_{}_{}", self.id, self.made);
        self.made += 1;
        let mut columns = vec![format!("{ROW} INTEGER PRIMARY KEY"), format!("{MISSING} TEXT")];
        for (column, kind) in self.columns.iter().zip(&kinds) {
            columns.push(format!("{} {}", quoted(&column.name), kind.declared()));
        }
        let columns = columns.join(", ");
        self.connection.execute_batch(&format!("CREATE TABLE {physical} ({columns})"))?;
        let marks = "?, ".repeat(kinds.len() + 1) + "?";
        self.insert = Some(self.connection.prepare(&format!("INSERT INTO {physical} VALUES ({marks})"))?);
        self.segments.push(Segment { physical, kinds });
        Ok(())
    }

    fn insert(&mut self, row: &Map<String, Value>) -> rusqlite::Result<()> {
        let Some(mut insert) = self.insert.take() else { return Err(rusqlite::Error::InvalidQuery) };
        let kinds = self.segments.last().map(|s| s.kinds.as_slice()).unwrap_or_default();
        insert.clear_bindings();
        insert.raw_bind_parameter(1, (self.rows + 1) as i64)?;
        for (expected, (name, value)) in row.iter().enumerate() {
            let at = self.position(name, expected).ok_or(rusqlite::Error::InvalidQuery)?;
            insert.raw_bind_parameter(at + 3, kind::cell(kinds[at], value))?;
        }
        if row.len() < self.columns.len() {
            let absent = (0..self.columns.len()).filter(|&i| !row.contains_key(&self.columns[i].name));
            insert.raw_bind_parameter(2, listed(absent))?;
        }
        insert.raw_execute()?;
        self.insert = Some(insert);
        Ok(())
    }

    /// Brings all rows into one table.
    pub(super) fn finish(mut self) -> rusqlite::Result<Written> {
        if self.segments.len() != 1 {
            self.merge()?;
        }
        self.insert = None;
        let rows = self.rows;
        let columns = self.columns.into_iter().map(|c| Column {
            kind: c.kind.unwrap_or(Kind::Text),
            seen: c.seen.into_iter().collect(),
            nulls: c.nulls,
            missing: rows - c.present,
            name: c.name,
        });
        Ok(Written {
            rows,
            bytes: self.bytes,
            sha256: crate::hex::hex(&self.digest.finalize()),
            columns: columns.collect(),
            physical: self.segments.pop().map(|s| s.physical).unwrap_or_default(),
        })
    }

    fn merge(&mut self) -> rusqlite::Result<()> {
        let parts = std::mem::take(&mut self.segments);
        let kinds = self.kinds();
        self.begin(kinds.clone())?;
        for part in parts {
            self.copy(&part, &kinds)?;
            self.connection.execute_batch(&format!("DROP TABLE {}", part.physical))?;
        }
        Ok(())
    }

    fn copy(&self, part: &Segment, kinds: &[Kind]) -> rusqlite::Result<()> {
        let (total, target) = (kinds.len(), &self.segments[0].physical);
        let marks = "?, ".repeat(total + 1) + "?";
        let mut insert = self.connection.prepare(&format!("INSERT INTO {target} VALUES ({marks})"))?;
        let mut select =
            self.connection.prepare(&format!("SELECT * FROM {} ORDER BY {ROW}", part.physical))?;
        let mut rows = select.query([])?;
        let added = listed(part.kinds.len()..total);
        while let Some(row) = rows.next()? {
            insert.clear_bindings();
            insert.raw_bind_parameter(1, row.get::<_, i64>(0)?)?;
            let missing = match row.get::<_, Option<String>>(1)? {
                Some(missing) if added.is_empty() => missing,
                Some(missing) => format!("{missing},{added}"),
                None => added.clone(),
            };
            if !missing.is_empty() {
                insert.raw_bind_parameter(2, missing)?;
            }
            for (i, (&old, &new)) in part.kinds.iter().zip(kinds).enumerate() {
                let cell = row.get_ref(i + 2)?;
                if old == new {
                    insert.raw_bind_parameter(i + 3, ToSqlOutput::Borrowed(cell))?;
                } else {
                    let value = kind::value(Some(old), cell).map_err(|_| rusqlite::Error::InvalidQuery)?;
                    insert.raw_bind_parameter(i + 3, kind::cell(new, &value))?;
                }
            }
            insert.raw_execute()?;
        }
        Ok(())
    }
}

fn listed(positions: impl Iterator<Item = usize>) -> String {
    positions.map(|i| i.to_string()).collect::<Vec<_>>().join(",")
}
