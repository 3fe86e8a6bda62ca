//! The job directory: the protocol between whoever asks for a job, the worker that runs it and whoever looks at it.
//!
//! ```text
//! jobs/<id>/spec.json     immutable, on disk before anything is computed
//!           data/         frozen copy of what is trained on, manifest.json with sha256 and counts
//!           control       what is wanted: run, pause, cancel; written by whoever is asked
//!           attempt.json  what the next worker is told: fence, device
//!           worker.json   which process has the job
//!           heartbeat     a count that moves when the work does
//!           events.jsonl  append-only, only the worker writes: seq, time, type, data
//!           lock          locked by the live worker; the kernel lets go on any death
//!           ckpt-<step>/  where an attempt can go on
//!           adapter/      the result
//!           result.json   terminal truth
//! ```

mod clock;
pub(crate) mod control;
mod events;
mod files;
mod freeze;
mod home;
mod id;
mod result;

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::Error;

pub use clock::{now, rfc3339, rfc3339_millis, rfc3339_now};
pub use control::{Attempt, AttemptFailure, Control, Heartbeat, WorkerIdentity};
pub use events::EventLog;
pub use files::{hex, io_words, is_disk_full, sha256_file, sync_dir, write_atomic};
pub use freeze::{Freezer, FrozenFile, FrozenPlace, FrozenPlaces, FrozenRows};
pub use home::{home, home_from};
pub use id::{created_millis, is_id};
pub use result::{Failure, JobResult, Preview, Status};

/// Longest time to wait for a lock that is held.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// Version of the layout and of every JSON file in it.
pub const FORMAT_VERSION: u32 = 1;

/// A job directory held by this process.
#[derive(Debug)]
pub struct JobDir {
    id: String,
    path: PathBuf,
    /// Locked as long as this value lives.
    _lock: File,
}

/// `spec.json`: the spec with what is needed to read it again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SpecFile<S> {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Version of the program that wrote it.
    pub tunesmith_version: String,
    /// Job id.
    pub id: String,
    /// RFC 3339 time in UTC.
    pub created_at: String,
    /// What the job is told beside its spec.
    #[serde(default)]
    pub submission: Submission,
    /// The resolved spec.
    pub spec: S,
}

/// What a job is told that says nothing about the adapter: two jobs of the same spec that differ in it make the same.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Submission {
    /// Higher ones run first.
    pub priority: i64,
    /// So that asking twice makes one job.
    pub idempotency_key: Option<String>,
    /// The job it repeats.
    pub retried_from: Option<String>,
    /// Command to run when it is over.
    pub on_finish: Option<String>,
}

/// `data/manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest<S> {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Where the rows came from, and what became of each: how many were read, kept, dropped and why.
    pub sources: Vec<S>,
    /// What is trained on.
    pub train: FrozenFile,
    /// What is held out.
    pub validation: Option<FrozenFile>,
}

impl JobDir {
    /// Makes a new job directory under `home` with a fresh id, and takes its lock.
    pub fn create(home: &Path) -> Result<Self, Error> {
        let jobs = home.join("jobs");
        if !jobs.is_dir() {
            fs::create_dir_all(&jobs).map_err(Error::at("create", &jobs))?;
            sync_dir(home)?;
        }
        loop {
            let id = id::fresh();
            let path = jobs.join(&id);
            match fs::create_dir(&path) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(Error::at("create", &path)(e)),
            }
            sync_dir(&jobs)?;
            let lock = lock(&path)?;
            return Ok(Self { id, path, _lock: lock });
        }
    }

    /// Opens the directory of a job and takes its lock: whoever looks whether the lock is free holds it for a moment,
    /// so this waits a little.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let id = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        fs::metadata(path).map_err(Error::at("read", path))?;
        let started = Instant::now();
        loop {
            match lock(path) {
                Err(Error::Busy { .. }) if started.elapsed() < LOCK_PATIENCE => {
                    thread::sleep(Duration::from_millis(20));
                }
                held => return Ok(Self { id, path: path.to_owned(), _lock: held? }),
            }
        }
    }

    /// The job's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the adapter goes. Not made here: it exists only once it is whole.
    pub fn adapter(&self) -> PathBuf {
        self.path.join("adapter")
    }

    /// Writes `spec.json`; on return it is on disk.
    pub fn write_spec(&self, spec: &impl Serialize) -> Result<(), Error> {
        self.write_spec_with(spec, &Submission::default())
    }

    /// [`JobDir::write_spec`] with what the job is told beside it.
    pub fn write_spec_with(&self, spec: &impl Serialize, submission: &Submission) -> Result<(), Error> {
        let file = SpecFile {
            format_version: FORMAT_VERSION,
            tunesmith_version: env!("CARGO_PKG_VERSION").to_owned(),
            id: self.id.clone(),
            created_at: rfc3339_now(),
            submission: submission.clone(),
            spec,
        };
        self.write_json("spec.json", &file)
    }

    /// Writes `result.json`; on return it is on disk.
    pub fn write_result(&self, result: &JobResult) -> Result<(), Error> {
        write_result(&self.path, result)
    }

    /// Opens `events.jsonl` for a run's events; an attempt that goes on adds to those that are there.
    pub fn events(&self) -> Result<EventLog, Error> {
        EventLog::open(&self.path.join("events.jsonl"))
    }

    /// The directory of the frozen rows.
    pub fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    /// Removes what an attempt left in `data/` that did not come to write the manifest.
    pub fn clear_data(&self) -> Result<(), Error> {
        match fs::remove_dir_all(self.data()) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::at("remove", &self.data())(e)),
            _ => Ok(()),
        }
    }

    /// Begins `data/<part>.jsonl`, the frozen copy of a part of the rows, and `data/<part>.places`.
    pub fn freeze(&self, part: &str) -> Result<Freezer, Error> {
        let dir = self.data();
        fs::create_dir_all(&dir).map_err(Error::at("create", &dir))?;
        Freezer::create(&dir, part)
    }

    /// Writes `data/manifest.json`; on return it is on disk, and with it the names of the files it lists.
    pub fn write_manifest(&self, manifest: &Manifest<impl Serialize>) -> Result<(), Error> {
        self.write_json("data/manifest.json", manifest)?;
        // The name of `data` itself.
        sync_dir(&self.path)
    }

    /// Reads `data/manifest.json`; nothing when the rows are not frozen yet.
    pub fn read_manifest<S: DeserializeOwned>(&self) -> Result<Option<Manifest<S>>, Error> {
        control::read_versioned(&self.path.join("data/manifest.json"))
    }

    fn write_json(&self, name: &str, value: &impl Serialize) -> Result<(), Error> {
        write_pretty(&self.path.join(name), value)
    }
}

impl SpecFile<serde_json::Value> {
    /// Reads `spec.json` of a job directory.
    ///
    /// # Errors
    /// [`Error::Newer`] for a format that this version does not know, [`Error::Corrupt`] for what is no spec.
    pub fn read(dir: &Path) -> Result<Self, Error> {
        let path = dir.join("spec.json");
        let damaged = |message: String| Error::Corrupt { path: path.clone(), message };
        let value: serde_json::Value =
            control::read_json(&path)?.ok_or_else(|| damaged("there is none".to_owned()))?;
        let version = value.get("format_version").and_then(serde_json::Value::as_u64);
        match version {
            Some(version) if version > u64::from(FORMAT_VERSION) => {
                Err(Error::Newer { path, version, known: FORMAT_VERSION.into() })
            }
            Some(_) => serde_json::from_value(value).map_err(|e| damaged(e.to_string())),
            None => Err(damaged("it has no `format_version`".to_owned())),
        }
    }
}

/// Writes `result.json` of a job that no process holds; on return it is on disk.
pub fn write_result(dir: &Path, result: &JobResult) -> Result<(), Error> {
    write_pretty(&dir.join("result.json"), result)
}

/// Reads `result.json` of a job directory, if there is one.
pub fn read_result(dir: &Path) -> Result<Option<JobResult>, Error> {
    control::read_json(&dir.join("result.json"))
}

/// Reads `data/manifest.json` of a job directory, if there is one.
pub fn read_manifest(dir: &Path) -> Result<Option<Manifest<serde_json::Value>>, Error> {
    control::read_json(&dir.join("data/manifest.json"))
}

fn write_pretty(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|e| Error::Json { path: path.to_owned(), message: e.to_string() })?;
    text.push(b'\n');
    write_atomic(path, &text)
}

/// Whether no process holds the job in this directory. Holds its lock for a moment.
pub fn is_free(dir: &Path) -> Result<bool, Error> {
    match lock(dir) {
        Ok(_) => Ok(true),
        Err(Error::Busy { .. }) => Ok(false),
        Err(other) => Err(other),
    }
}

/// Takes the lock of a job directory.
fn lock(dir: &Path) -> Result<File, Error> {
    let path = dir.join("lock");
    let file = File::options().create(true).append(true).open(&path).map_err(Error::at("create", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Busy { path: dir.to_owned() }),
        Err(TryLockError::Error(e)) => Err(Error::at("lock", &path)(e)),
    }
}

#[cfg(test)]
mod tests;
