//! Reads rows out of the store: a query under guard, or a whole snapshot.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, Statement};
use sha2::{Digest as _, Sha256};

use super::catalog::{self, Snapshot, SnapshotRef};
use super::error::TableError;
use super::guard::{Guard, MayRead, Seen, functions, locked, not_repeatable};
use super::kind::Kind;
use super::name::{TableRef, quoted};
use super::sqltext::{Vocabulary, check_statement, explain, tokens, uses_now};
use super::store::{self, fault, words};
use super::stream::{Message, Opened, Sending, TableRows, convert, nanos, out_of_time};
use super::writer::{MISSING, ROW};
use crate::error::Error;
use crate::hex::hex;
use crate::source::{FileFacts, Format};

/// Steps of SQLite's machine between two looks at the clock.
const STEPS: i32 = 4000;

/// What a query may use. Going beyond is an error and never a shorter result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueryLimits {
    /// Time that SQLite works; time in which the rows wait to be taken does not count.
    pub time: Duration,
    /// Rows.
    pub rows: Option<u64>,
    /// Bytes of all values.
    pub bytes: Option<u64>,
}

impl Default for QueryLimits {
    fn default() -> Self {
        Self { time: Duration::from_mins(1), rows: None, bytes: None }
    }
}

/// How a query runs.
#[derive(Clone)]
pub struct QueryOptions {
    /// What it may use.
    pub limits: QueryLimits,
    /// Which tables it may read, by name; asked once for each and more.
    pub may_read: MayRead,
    /// Refuses what gives other rows each time, such as `random()`: for training data.
    pub repeatable: bool,
}

impl Default for QueryOptions {
    fn default() -> Self {
        Self { limits: QueryLimits::default(), may_read: Arc::new(|_| true), repeatable: false }
    }
}

impl std::fmt::Debug for QueryOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueryOptions").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// The rows of a snapshot exactly as they were loaded, in their order.
pub(super) fn read_table(path: &Path, wanted: &TableRef) -> Result<TableRows, Error> {
    let (path, wanted) = (path.to_owned(), wanted.clone());
    TableRows::start(None, move |out, stop| {
        let connection = store::open_to_read(&path)?;
        let failed = |e| fault(&path, e);
        connection.execute_batch("BEGIN").map_err(failed)?;
        let snapshot = catalog::find(&catalog::all(&connection).map_err(failed)?, &wanted)?;
        let columns: Vec<_> = snapshot.columns.iter().map(|c| (c.name.clone(), Some(c.kind))).collect();
        let names = columns.iter().map(|(name, _)| quoted(name)).collect::<Vec<_>>().join(", ");
        let sql = format!("SELECT {names}, {MISSING} FROM {} ORDER BY {ROW}", snapshot.physical);
        let mut statement = connection.prepare(&sql).map_err(failed)?;
        let facts = FileFacts {
            name: snapshot.label(),
            format: Format::Sql,
            bytes: snapshot.bytes,
            sha256: snapshot.sha256.clone(),
            records: 0,
        };
        let names = columns.iter().map(|(name, _)| name.clone()).collect();
        let parents = vec![snapshot.reference()];
        let opened = Message::Opened(Opened { columns: names, parents, facts });
        let mut sending = Sending::new(out, stop, Arc::default());
        sending.send(opened);
        let mut rows = statement.query([]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let missing = row.get::<_, Option<String>>(columns.len()).map_err(failed)?;
            let (mut object, bytes) = convert(row, &columns, sending.number + 1)?;
            for at in missing.iter().flat_map(|list| list.split(',')) {
                let column = at.parse::<usize>().ok().and_then(|at| columns.get(at));
                column.and_then(|(name, _)| object.shift_remove(name));
            }
            if !sending.push(object, bytes) {
                return Ok(());
            }
        }
        sending.flush();
        Ok(())
    })
}

/// The rows of a query.
pub(super) fn query(path: &Path, sql: &str, options: &QueryOptions) -> Result<TableRows, Error> {
    check_statement(sql)?;
    if options.repeatable && uses_now(sql) {
        return Err(TableError::refused(not_repeatable("now")).into());
    }
    let (path, sql, options) = (path.to_owned(), sql.to_owned(), options.clone());
    TableRows::start(Some(options.limits.time), move |out, stop| {
        let mut connection = store::open_to_read(&path)?;
        let failed = |e| fault(&path, e);
        connection.execute_batch("BEGIN").map_err(failed)?;
        let snapshots = catalog::all(&connection).map_err(failed)?;
        let guard = Guard::new(&connection, &snapshots, Arc::clone(&options.may_read), options.repeatable);
        let seen = guard.and_then(|guard| guard.watch(&mut connection)).map_err(failed)?;
        let deadline = Arc::new(AtomicU64::new(nanos(options.limits.time)));
        watch_clock(&mut connection, &deadline, stop).map_err(failed)?;
        let asked = Asked { path: &path, sql: &sql, options: &options, stop };
        let mut statement = asked.prepare(&connection, &snapshots, &seen)?;
        let columns = columns(&statement)?;
        let parents: Vec<_> = std::mem::take(&mut locked(&seen).parents).into_iter().collect();
        let facts = FileFacts {
            name: sql.clone(),
            format: Format::Sql,
            bytes: 0,
            sha256: digest(&sql, &parents),
            records: 0,
        };
        let names = columns.iter().map(|(name, _)| name.clone()).collect();
        let mut sending = Sending::new(out, stop, deadline);
        sending.send(Message::Opened(Opened { columns: names, parents, facts }));
        asked.stream(&mut statement, &columns, sending)
    })
}

/// A query and what it was asked with.
struct Asked<'a> {
    path: &'a Path,
    sql: &'a str,
    options: &'a QueryOptions,
    stop: &'a AtomicBool,
}

impl Asked<'_> {
    fn prepare<'c>(
        &self,
        connection: &'c Connection,
        snapshots: &[Snapshot],
        seen: &Mutex<Seen>,
    ) -> Result<Statement<'c>, Error> {
        let statement = connection.prepare(self.sql);
        if let Some(why) = locked(seen).refusal.take() {
            return Err(TableError::refused(why).into());
        }
        let statement = statement.map_err(|error| self.explain(&error, snapshots))?;
        if statement.readonly() {
            return Ok(statement);
        }
        Err(TableError::refused("it would change something, but queries only read; use SELECT").into())
    }

    fn stream(
        &self,
        statement: &mut Statement<'_>,
        columns: &[(String, Option<Kind>)],
        mut sending: Sending<'_>,
    ) -> Result<(), Error> {
        let limits = self.options.limits;
        let mut rows = statement.query([]).map_err(|e| self.explain(&e, &[]))?;
        let mut total = 0;
        loop {
            let row = match rows.next() {
                Ok(Some(row)) => row,
                Ok(None) => break,
                Err(_) if self.stop.load(Ordering::Relaxed) => return Ok(()),
                Err(error) => return Err(self.explain(&error, &[])),
            };
            let (object, bytes) = convert(row, columns, sending.number + 1)?;
            total += bytes;
            if let Some(most) = limits.rows.filter(|&most| sending.number >= most) {
                return Err(TableError::limit(format!("it has more than {most} rows; add a LIMIT")).into());
            }
            if let Some(most) = limits.bytes.filter(|&most| total > most) {
                return Err(TableError::limit(format!(
                    "its rows have more than {most} bytes; select fewer columns or rows"
                ))
                .into());
            }
            if !sending.push(object, bytes) {
                return Ok(());
            }
        }
        sending.flush();
        Ok(())
    }

    /// An error of SQLite as a sentence.
    fn explain(&self, error: &rusqlite::Error, snapshots: &[Snapshot]) -> Error {
        match error.sqlite_error_code() {
            Some(ErrorCode::OperationInterrupted) => return out_of_time(self.options.limits.time).into(),
            Some(ErrorCode::TooBig) => {
                return TableError::limit("a value or a row would be larger than 72 MiB; make it smaller")
                    .into();
            }
            Some(ErrorCode::OutOfMemory) => {
                return TableError::limit("it needs more than 1 GiB of memory; select less at once").into();
            }
            Some(
                ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::DatabaseCorrupt
                | ErrorCode::DiskFull
                | ErrorCode::SystemIoFailure
                | ErrorCode::CannotOpen
                | ErrorCode::NotADatabase,
            ) => {
                let code = error.sqlite_error().copied();
                let code = code.unwrap_or(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR));
                return fault(self.path, rusqlite::Error::SqliteFailure(code, Some(words(error))));
            }
            _ => {}
        }
        let offset = match error {
            rusqlite::Error::SqlInputError { offset, .. } => usize::try_from(*offset).ok(),
            _ => None,
        };
        TableError::sql(explain(&words(error), self.sql, offset, &self.vocabulary(snapshots))).into()
    }

    fn vocabulary(&self, snapshots: &[Snapshot]) -> Vocabulary {
        let named: Vec<String> =
            tokens(self.sql).iter().filter_map(|t| Some(t.name()?.to_ascii_lowercase())).collect();
        let mut words = Vocabulary {
            tables: Vec::new(),
            columns: Vec::new(),
            functions: functions(self.options.repeatable).map(str::to_owned).collect(),
        };
        for snapshot in snapshots.iter().filter(|s| (self.options.may_read)(&s.name)) {
            if snapshot.newest {
                words.tables.push(snapshot.name.clone());
            }
            let bare = snapshot.newest && named.contains(&snapshot.name.to_ascii_lowercase());
            if bare || named.contains(&snapshot.label().to_ascii_lowercase()) {
                words.columns.extend(snapshot.columns.iter().map(|c| c.name.clone()));
            }
        }
        words.columns.sort();
        words.columns.dedup();
        words
    }
}

/// Stops the connection's work when its time is over or nobody waits for it.
fn watch_clock(
    connection: &mut Connection,
    deadline: &Arc<AtomicU64>,
    stop: &Arc<AtomicBool>,
) -> rusqlite::Result<()> {
    let (start, deadline, stop) = (Instant::now(), Arc::clone(deadline), Arc::clone(stop));
    let over =
        move || stop.load(Ordering::Relaxed) || nanos(start.elapsed()) > deadline.load(Ordering::Relaxed);
    connection.progress_handler(STEPS, Some(over))
}

/// Result columns: their names, and their kinds where the cells alone do not tell. An alias that ends in `::json` or
/// `::boolean` says what an expression is.
fn columns(statement: &Statement<'_>) -> Result<Vec<(String, Option<Kind>)>, Error> {
    let mut columns: Vec<(String, Option<Kind>)> = Vec::new();
    for column in statement.columns() {
        let name = column.name();
        let told = [("::json", Kind::Json), ("::boolean", Kind::Boolean)]
            .into_iter()
            .find_map(|(suffix, kind)| Some((name.strip_suffix(suffix)?, kind)));
        let (name, kind) = match told {
            Some((name, kind)) => (name, Some(kind)),
            None => (name, Kind::of_declared(column.decl_type())),
        };
        if columns.iter().any(|(known, _)| known == name) {
            let what = format!("two result columns are called `{name}`; give one of them an alias with AS");
            return Err(TableError::sql(what).into());
        }
        columns.push((name.to_owned(), kind));
    }
    Ok(columns)
}

/// Hash of a query and of what it read.
fn digest(sql: &str, parents: &[SnapshotRef]) -> String {
    let mut digest = Sha256::new();
    let mut text = |text: &str| {
        digest.update((text.len() as u64).to_le_bytes());
        digest.update(text.as_bytes());
    };
    text(sql);
    for parent in parents {
        text(&parent.table);
        text(&parent.snapshot.to_string());
        text(&parent.sha256);
    }
    hex(&digest.finalize())
}
