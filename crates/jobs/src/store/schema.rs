//! The tables of the store, and the rules that the database itself keeps.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use crate::{Error, State};

/// `TSMJ`: the mark of a job store in SQLite's header.
const APPLICATION_ID: i64 = 0x5453_4d4a;

/// The format of the store; a store of a later one is refused.
const VERSION: i64 = 1;

/// Longest time to wait for another process to finish writing.
const PATIENCE: Duration = Duration::from_secs(10);

const TABLES: &str = "
CREATE TABLE job (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    state TEXT NOT NULL,
    desired TEXT NOT NULL DEFAULT 'run',
    generation INTEGER NOT NULL DEFAULT 0,
    priority INTEGER NOT NULL DEFAULT 0,
    device_wanted TEXT NOT NULL,
    base_model TEXT NOT NULL,
    training_data TEXT NOT NULL,
    validation_data TEXT,
    spec_sha256 TEXT NOT NULL,
    idempotency_key TEXT UNIQUE,
    retried_from TEXT,
    on_finish TEXT,
    fence INTEGER NOT NULL DEFAULT 0,
    attempt INTEGER NOT NULL DEFAULT 0,
    micro_batch_divisor INTEGER NOT NULL DEFAULT 1,
    stalls INTEGER NOT NULL DEFAULT 0,
    checkpoint_step INTEGER,
    reason TEXT,
    created_ms INTEGER NOT NULL,
    started_ms INTEGER,
    finished_ms INTEGER,
    phase TEXT,
    step INTEGER NOT NULL DEFAULT 0,
    total_steps INTEGER NOT NULL DEFAULT 0,
    progress TEXT NOT NULL DEFAULT '{}',
    result TEXT,
    event_offset INTEGER NOT NULL DEFAULT 0,
    event_seq INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX job_state ON job (state) WHERE state NOT IN ('succeeded', 'failed', 'cancelled');
CREATE INDEX job_name ON job (name);
CREATE TABLE lease (
    device TEXT PRIMARY KEY,
    job_id TEXT NOT NULL UNIQUE REFERENCES job (id) ON DELETE CASCADE
) STRICT;
CREATE TABLE event (
    job_id TEXT NOT NULL REFERENCES job (id) ON DELETE CASCADE,
    seq INTEGER NOT NULL,
    time TEXT NOT NULL,
    type TEXT NOT NULL,
    data TEXT NOT NULL,
    PRIMARY KEY (job_id, seq)
) STRICT, WITHOUT ROWID;
CREATE TABLE history (
    number INTEGER PRIMARY KEY,
    job_id TEXT NOT NULL REFERENCES job (id) ON DELETE CASCADE,
    at_ms INTEGER NOT NULL,
    old TEXT NOT NULL,
    new TEXT NOT NULL,
    fence INTEGER NOT NULL,
    reason TEXT
) STRICT;
CREATE INDEX history_job ON history (job_id);
CREATE TABLE notice (
    job_id TEXT PRIMARY KEY REFERENCES job (id) ON DELETE CASCADE,
    state TEXT NOT NULL
) STRICT;
CREATE TABLE transition (old TEXT NOT NULL, new TEXT NOT NULL, PRIMARY KEY (old, new)) STRICT, WITHOUT ROWID;
CREATE TRIGGER job_over BEFORE UPDATE ON job WHEN OLD.state IN ('succeeded', 'failed', 'cancelled')
BEGIN SELECT RAISE(ABORT, 'the job is over'); END;
CREATE TRIGGER job_legal BEFORE UPDATE OF state ON job
WHEN NEW.state <> OLD.state AND NOT EXISTS (SELECT 1 FROM transition WHERE old = OLD.state AND new = NEW.state)
BEGIN SELECT RAISE(ABORT, 'illegal transition'); END;
CREATE TRIGGER job_fence BEFORE UPDATE OF fence ON job WHEN NEW.fence < OLD.fence
BEGIN SELECT RAISE(ABORT, 'a fence never goes down'); END;
CREATE TRIGGER job_history AFTER UPDATE OF state ON job WHEN NEW.state <> OLD.state
BEGIN
    INSERT INTO history (job_id, at_ms, old, new, fence, reason)
    VALUES (NEW.id, CAST(unixepoch('subsec') * 1000 AS INTEGER), OLD.state, NEW.state, NEW.fence, NEW.reason);
    DELETE FROM lease WHERE job_id = NEW.id AND NEW.state <> 'running';
END;
CREATE TRIGGER job_notice AFTER UPDATE OF state ON job
WHEN NEW.on_finish IS NOT NULL AND NEW.state IN ('succeeded', 'failed', 'cancelled') AND NEW.state <> OLD.state
BEGIN INSERT INTO notice (job_id, state) VALUES (NEW.id, 'pending'); END;
";

/// Opens the store, making it where there is none.
pub(super) fn open(path: &Path) -> Result<Connection, Error> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(Error::at("create", folder))?;
    }
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let opened = Connection::open_with_flags(path, flags).and_then(|mut connection| {
        prepare(&mut connection)?;
        Ok(connection)
    });
    let mut connection = opened.map_err(|e| fault(path, e))?;
    // Two processes that make it at once: SQLite does not wait where the journal's mode is changed.
    let started = Instant::now();
    loop {
        match settle(&mut connection) {
            Err(e)
                if e.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && started.elapsed() < PATIENCE =>
            {
                std::thread::sleep(Duration::from_millis(20));
            }
            settled => break settled.map_err(|e| fault(path, e))?,
        }
    }
    check_marks(&connection, path)?;
    Ok(connection)
}

/// What holds for every connection.
fn prepare(connection: &mut Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(PATIENCE)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DML, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DDL, false)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // In KiB where negative.
    connection.pragma_update(None, "cache_size", -4096)
}

/// Makes the tables of a new store.
fn settle(connection: &mut Connection) -> rusqlite::Result<()> {
    let mark: i64 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    if mark == APPLICATION_ID || !is_empty(connection)? {
        return Ok(());
    }
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // Two processes may both have seen an empty file: the second finds it made.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if is_empty(&transaction)? {
        transaction.execute_batch(TABLES)?;
        for old in State::ALL {
            for new in State::ALL.into_iter().filter(|new| old.may_become(*new)) {
                let pair = (old.as_str(), new.as_str());
                transaction.execute("INSERT INTO transition (old, new) VALUES (?1, ?2)", pair)?;
            }
        }
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", VERSION)?;
    }
    transaction.commit()
}

fn is_empty(connection: &Connection) -> rusqlite::Result<bool> {
    let objects: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    Ok(objects == 0)
}

/// Refuses a database that is not ours, of a later format, or not sound.
fn check_marks(connection: &Connection, path: &Path) -> Result<(), Error> {
    let pragma = |name: &str| -> Result<i64, Error> {
        connection.pragma_query_value(None, name, |row| row.get(0)).map_err(|e| fault(path, e))
    };
    let refuse = |message: String| Err(Error::Corrupt { path: path.to_owned(), message });
    if pragma("application_id")? != APPLICATION_ID {
        return refuse("it is a database, but not a store of jobs".to_owned());
    }
    let version = pragma("user_version")?;
    if version > VERSION {
        return Err(Error::Newer { path: path.to_owned(), version: version as u64, known: VERSION as u64 });
    }
    Ok(())
}

/// Reads every page and index; an empty list is a sound store.
pub(super) fn problems(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut found = Vec::new();
    connection.pragma_query(None, "integrity_check", |row| {
        found.push(row.get::<_, String>(0)?);
        Ok(())
    })?;
    found.retain(|line| line != "ok");
    Ok(found)
}

/// What SQLite says, in our words.
pub(super) fn fault(path: &Path, error: rusqlite::Error) -> Error {
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            Error::Corrupt { path: path.to_owned(), message: error.to_string() }
        }
        Some(ErrorCode::DiskFull) => {
            Error::at("write", path)(std::io::Error::from(std::io::ErrorKind::StorageFull))
        }
        // SQLite does not tell which: a file size limit, a quota, a disk that fails.
        Some(ErrorCode::SystemIoFailure) => Error::at("use", path)(std::io::Error::other(error.to_string())),
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
            Error::at("write", path)(std::io::Error::from(std::io::ErrorKind::PermissionDenied))
        }
        Some(ErrorCode::CannotOpen) => {
            let source = match path.symlink_metadata() {
                Ok(about) if about.is_dir() => std::io::Error::from(std::io::ErrorKind::IsADirectory),
                _ => std::io::Error::from(std::io::ErrorKind::PermissionDenied),
            };
            Error::at("open", path)(source)
        }
        _ => Error::Store { path: path.to_owned(), message: error.to_string() },
    }
}
