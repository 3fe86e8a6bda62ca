//! The store's file: one SQLite database in WAL mode, marked as ours.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use super::error::TableError;
use crate::error::Error;

/// `TSMT`: the mark of a store in SQLite's header.
const APPLICATION_ID: i64 = 0x5453_4d54;

/// The format of the store.
const VERSION: i64 = 1;

/// Longest time to wait for another process to finish writing.
const PATIENCE: Duration = Duration::from_secs(10);

/// Largest value and row in bytes: a line of the longest length that is read, and room for its columns.
pub(super) const LARGEST_VALUE: i32 = 72 << 20;

/// Memory that SQLite gives back caches beyond, and that it refuses to go beyond, for the whole process.
const SOFT_HEAP: i64 = 256 << 20;
const HARD_HEAP: i64 = 1 << 30;

const SCHEMA: &str = "
CREATE TABLE _tunesmith_table (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE COLLATE NOCASE,
    next INTEGER NOT NULL
) STRICT;
CREATE TABLE _tunesmith_snapshot (
    id INTEGER PRIMARY KEY,
    table_id INTEGER NOT NULL REFERENCES _tunesmith_table (id),
    number INTEGER NOT NULL,
    created TEXT NOT NULL,
    rows INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    columns TEXT NOT NULL,
    origin TEXT NOT NULL,
    physical TEXT NOT NULL,
    UNIQUE (table_id, number)
) STRICT;";

/// Opens the store to write, making it where there is none.
pub(super) fn open(path: &Path) -> Result<Connection, Error> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    }
    check_header(path)?;
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags).map_err(|e| fault(path, e))?;
    prepare(&mut connection).and_then(|()| settle(&mut connection)).map_err(|e| fault(path, e))?;
    check_marks(&connection, path)?;
    Ok(connection)
}

/// Opens the store to read, and only that.
pub(super) fn open_to_read(path: &Path) -> Result<Connection, Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = || {
        let mut connection = Connection::open_with_flags(path, flags)?;
        prepare(&mut connection)?;
        connection.pragma_update(None, "query_only", true)?;
        connection.pragma_update(None, "soft_heap_limit", SOFT_HEAP)?;
        connection.pragma_update(None, "hard_heap_limit", HARD_HEAP)?;
        Ok(connection)
    };
    let connection = open().map_err(|e| fault(path, e))?;
    check_marks(&connection, path)?;
    Ok(connection)
}

/// Gives free room back to the file system. Others may still read the old state: that is no failure and not waited for.
pub(super) fn give_back(connection: &Connection) {
    let _ = connection.busy_timeout(Duration::ZERO);
    let _ = connection.execute_batch("PRAGMA incremental_vacuum");
    let _ = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
    let _ = connection.busy_timeout(PATIENCE);
}

/// What holds for every connection.
fn prepare(connection: &mut Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(PATIENCE)?;
    connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, LARGEST_VALUE)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    // A misspelt column in double quotes is an error and no string.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DML, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DDL, false)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // In KiB where negative.
    connection.pragma_update(None, "cache_size", -32_768)
}

/// Makes the tables of a new store.
fn settle(connection: &mut Connection) -> rusqlite::Result<()> {
    if is_empty(connection)? {
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    } else if mark(connection)? != APPLICATION_ID {
        return Ok(());
    }
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "journal_size_limit", 16 << 20)?;
    // Two processes may both have seen an empty file: the second finds it made.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if is_empty(&transaction)? {
        transaction.execute_batch(SCHEMA)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", VERSION)?;
    }
    transaction.commit()
}

fn is_empty(connection: &Connection) -> rusqlite::Result<bool> {
    Ok(mark(connection)? == 0
        && connection.query_row("SELECT count(*) FROM sqlite_schema", [], |r| r.get::<_, i64>(0))? == 0)
}

fn mark(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "application_id", |r| r.get(0))
}

fn check_marks(connection: &Connection, path: &Path) -> Result<(), Error> {
    let found = mark(connection).map_err(|e| fault(path, e))?;
    if found != APPLICATION_ID {
        return Err(not_ours(path, "it is the SQLite database of another program"));
    }
    let version = connection.pragma_query_value(None, "user_version", |r| r.get::<_, i64>(0));
    let version = version.map_err(|e| fault(path, e))?;
    if version > VERSION {
        return Err(TableError::Newer { path: path.to_owned(), found: version, known: VERSION }.into());
    }
    Ok(())
}

/// Refuses what is plainly no database, before SQLite could take an odd file for an empty one.
fn check_header(path: &Path) -> Result<(), Error> {
    use std::io::Read as _;
    let mut head = Vec::new();
    match std::fs::File::open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io(path, e)),
        Ok(file) if file.metadata().is_ok_and(|m| m.is_dir()) => {
            return Err(not_ours(path, "it is a folder"));
        }
        Ok(file) => file.take(16).read_to_end(&mut head).map_err(|e| Error::io(path, e))?,
    };
    if head.is_empty() || head == b"SQLite format 3\0" {
        return Ok(());
    }
    Err(not_ours(path, "it is no SQLite database"))
}

fn not_ours(path: &Path, what: &'static str) -> Error {
    TableError::NotAStore { path: path.to_owned(), what }.into()
}

/// A failure of SQLite that is not the fault of a query.
pub(super) fn fault(path: &Path, error: rusqlite::Error) -> Error {
    let path: PathBuf = path.to_owned();
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => TableError::Busy { path },
        Some(ErrorCode::DiskFull) => TableError::Full { path },
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            TableError::NotAStore { path, what: "it is no SQLite database, or a damaged one" }
        }
        _ => TableError::Store { path, what: words(&error) },
    }
    .into()
}

/// What SQLite said, without the number of the error.
pub(super) fn words(error: &rusqlite::Error) -> String {
    match error {
        rusqlite::Error::SqliteFailure(_, Some(message)) => message.clone(),
        rusqlite::Error::SqlInputError { msg, .. } => msg.clone(),
        other => other.to_string(),
    }
}
