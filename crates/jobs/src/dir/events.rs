//! `events.jsonl`: what happened, a line each, only ever added to.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::rfc3339_now;
use crate::Error;

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
    /// Opens the log of a job, which may have one already. A last line that a dying process left unfinished is taken
    /// away: nobody has counted it.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let open = || -> std::io::Result<(File, u64)> {
            let mut file = File::options().create(true).read(true).append(true).open(path)?;
            let (whole, last_seq) = last_line(&mut file)?;
            if whole < file.metadata()?.len() {
                file.set_len(whole)?;
            }
            Ok((file, last_seq))
        };
        let (file, last_seq) = open().map_err(Error::at("open", path))?;
        Ok(Self { file, path: path.to_owned(), next_seq: last_seq + 1, torn: false })
    }

    /// Adds one event: an object with `type` and `data`, to which `seq` (from 1) and `time` (UTC) are added.
    ///
    /// # Errors
    /// [`Error::Io`] when the line could not be written whole; every later call fails too, so that a torn
    /// line is always the last.
    pub fn append(&mut self, event: &impl Serialize) -> Result<(), Error> {
        if self.torn {
            let source = std::io::Error::other("an earlier line could not be written");
            return Err(Error::at("write", &self.path)(source));
        }
        let line = Line { seq: self.next_seq, time: rfc3339_now(), event };
        let mut bytes = serde_json::to_vec(&line)
            .map_err(|e| Error::Json { path: self.path.clone(), message: e.to_string() })?;
        bytes.push(b'\n');
        // One write of a whole line in append mode: a reader never sees two lines mixed.
        if let Err(e) = self.file.write_all(&bytes) {
            self.torn = true;
            return Err(Error::at("write", &self.path)(e));
        }
        self.next_seq += 1;
        Ok(())
    }

    /// Makes what was written durable.
    pub fn sync(&self) -> Result<(), Error> {
        self.file.sync_data().map_err(Error::at("write", &self.path))
    }
}

/// Length of the file up to its last newline, and the `seq` of the last line before it.
fn last_line(file: &mut File) -> std::io::Result<(u64, u64)> {
    #[derive(Deserialize)]
    struct Numbered {
        seq: u64,
    }
    let (mut whole, mut at, mut last_seq) = (0, 0, 0);
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok((whole, last_seq));
        }
        at += read as u64;
        if line.ends_with(b"\n") {
            whole = at;
            if let Ok(Numbered { seq }) = serde_json::from_slice(&line) {
                last_seq = last_seq.max(seq);
            }
        }
    }
}
