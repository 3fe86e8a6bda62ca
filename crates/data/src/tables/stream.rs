//! Rows on their way from the store to whoever reads them.
//!
//! A thread of its own holds the connection, in one read transaction, and hands the rows over in batches. So a reader
//! can be sent anywhere, memory stays bounded, and a query that hangs inside one SQL function can be given up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use rusqlite::Row;
use serde_json::{Map, Value};

use super::catalog::SnapshotRef;
use super::error::TableError;
use super::kind::{self, Kind};
use super::store::{LARGEST_VALUE, words};
use crate::error::Error;
use crate::source::{FileFacts, Format, Place, Raw, Record, RecordReader};

/// Rows and bytes that are handed over at once.
const BATCH_ROWS: usize = 1024;
const BATCH_BYTES: u64 = 1 << 20;

/// How far a single SQL function may go beyond the time limit before the query is given up.
const GRACE: Duration = Duration::from_secs(5);

/// The rows of a query or a snapshot, as they come.
#[derive(Debug)]
pub struct TableRows {
    columns: Vec<String>,
    parents: Vec<SnapshotRef>,
    facts: FileFacts,
    /// Bytes are known beforehand, for a snapshot.
    bytes_known: bool,
    batches: Receiver<Message>,
    ready: std::vec::IntoIter<Record>,
    stop: Arc<AtomicBool>,
    time: Option<Duration>,
    done: bool,
}

pub(super) enum Message {
    Opened(Opened),
    Rows(Vec<Record>, u64),
    Failed(Error),
    End,
}

pub(super) struct Opened {
    pub(super) columns: Vec<String>,
    pub(super) parents: Vec<SnapshotRef>,
    pub(super) facts: FileFacts,
}

impl TableRows {
    /// Names of the columns, in order. A row of a snapshot has only those that its source had.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// The snapshots that are read.
    pub fn parents(&self) -> &[SnapshotRef] {
        &self.parents
    }

    pub(super) fn start(
        time: Option<Duration>,
        work: impl FnOnce(&SyncSender<Message>, &Arc<AtomicBool>) -> Result<(), Error> + Send + 'static,
    ) -> Result<Self, Error> {
        let (sender, batches) = sync_channel(2);
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let body = move || {
            let last = match work(&sender, &seen) {
                Ok(()) => Message::End,
                Err(error) => Message::Failed(error),
            };
            // A reader that has gone needs no end.
            let _ = sender.send(last);
        };
        std::thread::Builder::new()
            .name("tables".to_owned())
            .spawn(body)
            .map_err(|e| lost(&e.to_string()))?;
        let facts = FileFacts {
            name: String::new(),
            format: Format::Sql,
            bytes: 0,
            sha256: String::new(),
            records: 0,
        };
        let (columns, parents, ready) = (Vec::new(), Vec::new(), Vec::new().into_iter());
        let mut rows =
            Self { columns, parents, facts, bytes_known: false, batches, ready, stop, time, done: false };
        match rows.receive()? {
            Message::Opened(opened) => {
                rows.columns = opened.columns;
                rows.parents = opened.parents;
                rows.bytes_known = opened.facts.bytes > 0;
                rows.facts = opened.facts;
                Ok(rows)
            }
            Message::Failed(error) => Err(error),
            _ => Err(lost("it ended before it began")),
        }
    }

    fn receive(&self) -> Result<Message, Error> {
        let Some(time) = self.time else {
            return self.batches.recv().map_err(|_| lost("the reader broke off"));
        };
        self.batches.recv_timeout(time + GRACE).map_err(|error| match error {
            RecvTimeoutError::Timeout => out_of_time(time).into(),
            RecvTimeoutError::Disconnected => lost("the reader broke off"),
        })
    }
}

impl Drop for TableRows {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl RecordReader for TableRows {
    fn next_record(&mut self) -> Result<Option<Record>, Error> {
        loop {
            if let Some(record) = self.ready.next() {
                self.facts.records += 1;
                return Ok(Some(record));
            }
            if self.done {
                return Ok(None);
            }
            match self.receive()? {
                Message::Rows(rows, bytes) => {
                    if !self.bytes_known {
                        self.facts.bytes += bytes;
                    }
                    self.ready = rows.into_iter();
                }
                Message::Failed(error) => {
                    self.done = true;
                    return Err(error);
                }
                Message::End | Message::Opened(_) => self.done = true,
            }
        }
    }

    fn facts(&self) -> FileFacts {
        self.facts.clone()
    }
}

fn lost(what: &str) -> Error {
    TableError::Store { path: "the store of tables".into(), what: what.to_owned() }.into()
}

pub(super) fn out_of_time(time: Duration) -> TableError {
    TableError::limit(format!(
        "it ran longer than {} s; filter more, or allow it more time",
        time.as_secs_f64()
    ))
}

pub(super) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// A row as an object, and about how many bytes its values have.
pub(super) fn convert(
    row: &Row<'_>,
    columns: &[(String, Option<Kind>)],
    number: u64,
) -> Result<(Map<String, Value>, u64), Error> {
    let mut object = Map::with_capacity(columns.len());
    let mut bytes = 0;
    for (i, (name, kind)) in columns.iter().enumerate() {
        let bad =
            |what: String| TableError::Value { row: number, what: format!("the column `{name}` {what}") };
        let cell = row.get_ref(i).map_err(|e| bad(format!("cannot be read ({}); report this", words(&e))))?;
        bytes += match cell {
            rusqlite::types::ValueRef::Text(text) | rusqlite::types::ValueRef::Blob(text) => {
                text.len() as u64
            }
            _ => 8,
        };
        if bytes > LARGEST_VALUE as u64 {
            return Err(
                TableError::limit(format!("row {number} is larger than 72 MiB; make it smaller")).into()
            );
        }
        object.insert(name.clone(), kind::value(*kind, cell).map_err(bad)?);
    }
    Ok((object, bytes))
}

/// Collects rows and hands them over. Waiting for the reader moves the deadline.
pub(super) struct Sending<'a> {
    out: &'a SyncSender<Message>,
    stop: &'a AtomicBool,
    deadline: Arc<AtomicU64>,
    batch: Vec<Record>,
    bytes: u64,
    pub(super) number: u64,
}

impl<'a> Sending<'a> {
    pub(super) fn new(out: &'a SyncSender<Message>, stop: &'a AtomicBool, deadline: Arc<AtomicU64>) -> Self {
        Self { out, stop, deadline, batch: Vec::new(), bytes: 0, number: 0 }
    }

    /// Takes a row; false when nobody wants more.
    pub(super) fn push(&mut self, object: Map<String, Value>, bytes: u64) -> bool {
        self.number += 1;
        self.bytes += bytes;
        let place = Place { file: 0, number: self.number };
        self.batch.push(Record { place, raw: Ok(Raw::Object(object)) });
        let full = self.batch.len() >= BATCH_ROWS || self.bytes >= BATCH_BYTES;
        if full {
            self.flush();
        }
        !self.stop.load(Ordering::Relaxed)
    }

    pub(super) fn flush(&mut self) {
        let rows = std::mem::take(&mut self.batch);
        let bytes = std::mem::take(&mut self.bytes);
        self.send(Message::Rows(rows, bytes));
    }

    pub(super) fn send(&mut self, message: Message) {
        let before = Instant::now();
        if self.out.send(message).is_err() {
            self.stop.store(true, Ordering::Relaxed);
        }
        self.deadline.fetch_add(nanos(before.elapsed()), Ordering::Relaxed);
    }
}
