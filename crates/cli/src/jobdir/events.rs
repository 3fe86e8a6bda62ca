//! `events.jsonl`: what happened, a line each, only ever added to.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{JobDirError, rfc3339_now};

/// The writer of `events.jsonl`.
#[derive(Debug)]
pub struct EventLog {
    file: File,
    path: PathBuf,
    next_seq: u64,
    /// A line may have been written in part; nothing may follow it.
    torn: bool,
}

#[derive(Serialize)]
struct Line<'a, E> {
    seq: u64,
    time: String,
    #[serde(flatten)]
    event: &'a E,
}

impl EventLog {
    /// Starts the log of a new job; it must not exist yet.
    pub(super) fn create(path: &Path) -> Result<Self, JobDirError> {
        let file = File::options()
            .create_new(true)
            .append(true)
            .open(path)
            .map_err(JobDirError::at("create", path))?;
        Ok(Self { file, path: path.to_owned(), next_seq: 1, torn: false })
    }

    /// Adds one event: an object with `type` and `data`, to which `seq` (from 1) and `time` (UTC) are added.
    ///
    /// # Errors
    /// [`JobDirError::Io`] when the line could not be written whole; every later call fails too, so that a torn
    /// line is always the last.
    pub fn append(&mut self, event: &impl Serialize) -> Result<(), JobDirError> {
        if self.torn {
            let source = std::io::Error::other("an earlier line could not be written");
            return Err(JobDirError::at("write", &self.path)(source));
        }
        let line = Line { seq: self.next_seq, time: rfc3339_now(), event };
        let mut bytes = serde_json::to_vec(&line)
            .map_err(|e| JobDirError::Json { path: self.path.clone(), message: e.to_string() })?;
        bytes.push(b'\n');
        // One write of a whole line in append mode: a reader never sees two lines mixed.
        if let Err(e) = self.file.write_all(&bytes) {
            self.torn = true;
            return Err(JobDirError::at("write", &self.path)(e));
        }
        self.next_seq += 1;
        Ok(())
    }

    /// Makes what was written durable.
    pub fn sync(&self) -> Result<(), JobDirError> {
        self.file.sync_data().map_err(JobDirError::at("write", &self.path))
    }
}
