//! The small files by which a supervisor and a worker speak: `control`, `attempt.json`, `worker.json`, `heartbeat`.

use std::fs::{self, File};
use std::io::{self, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::files::write_shared;
use super::{FORMAT_VERSION, Failure, write_atomic};
use crate::{Desired, Error};

/// `control`: what is wanted of the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Control {
    /// What is wanted.
    pub want: Desired,
    /// Counts the requests.
    #[serde(rename = "gen")]
    pub generation: u64,
}

/// `attempt.json`: what the worker that starts next is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Counts the starts, from 1.
    pub attempt: u32,
    /// Goes up at each start; a result with another one is not believed.
    pub fence: u64,
    /// Where to compute: `cpu` or `cuda:N`.
    pub device: String,
    /// Micro-batches are made this many times smaller than usual, after memory ran out. The global batch stays.
    pub micro_batch_divisor: u32,
}

/// `worker.json`: which process has the job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerIdentity {
    /// Process id.
    pub pid: u32,
    /// When the process started, in the kernel's own ticks since boot: two processes of one id differ in it.
    pub start_time: u64,
    /// Which boot of the machine that was.
    pub boot_id: String,
    /// Of the attempt it runs.
    pub fence: u64,
}

/// `failure.json`: why an attempt ended, when that need not be the end of the job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptFailure {
    /// Of the attempt.
    pub fence: u64,
    /// Why.
    pub error: Failure,
}

impl Control {
    /// Reads `control` of a job directory; a job without one is to run.
    pub fn read(dir: &Path) -> Result<Self, Error> {
        Ok(read_json(&dir.join("control"))?.unwrap_or(Self { want: Desired::Run, generation: 0 }))
    }

    /// Writes `control`; a reader sees the old one or the new one. A command and the supervisor may do it at one time.
    pub fn write(self, dir: &Path) -> Result<(), Error> {
        let path = dir.join("control");
        write_shared(&path, &json_line(&path, &self)?)
    }
}

impl Attempt {
    /// Reads `attempt.json`, if there is one.
    pub fn read(dir: &Path) -> Result<Option<Self>, Error> {
        read_json(&dir.join("attempt.json"))
    }

    /// Writes `attempt.json`.
    pub fn write(&self, dir: &Path) -> Result<(), Error> {
        write_json(&dir.join("attempt.json"), self)
    }
}

impl AttemptFailure {
    /// Reads `failure.json`, if there is one.
    pub fn read(dir: &Path) -> Result<Option<Self>, Error> {
        read_json(&dir.join("failure.json"))
    }

    /// Writes `failure.json`.
    pub fn write(&self, dir: &Path) -> Result<(), Error> {
        write_json(&dir.join("failure.json"), self)
    }
}

impl WorkerIdentity {
    /// This process.
    pub fn own(fence: u64) -> Self {
        let pid = std::process::id();
        Self { pid, start_time: start_time(pid).unwrap_or_default(), boot_id: boot_id(), fence }
    }

    /// Reads `worker.json`, if there is one.
    pub fn read(dir: &Path) -> Result<Option<Self>, Error> {
        read_json(&dir.join("worker.json"))
    }

    /// Writes `worker.json`.
    pub fn write(&self, dir: &Path) -> Result<(), Error> {
        write_json(&dir.join("worker.json"), self)
    }

    /// Whether the process of this id is the very process that wrote it, and not a stranger that got the id later.
    pub fn is_alive(&self) -> bool {
        self.start_time != 0 && self.boot_id == boot_id() && start_time(self.pid) == Some(self.start_time)
    }
}

/// Field 22 of `/proc/<pid>/stat`; none where there is no such process, or no such file system.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name, in parentheses, may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    // A process that has ended and was not waited for is not alive.
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// `heartbeat`: a count that moves when the work does. Not brought to the disk: it means nothing after a restart.
#[derive(Debug)]
pub struct Heartbeat {
    file: File,
    path: PathBuf,
}

impl Heartbeat {
    /// Opens `heartbeat` of a job directory.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let path = dir.join("heartbeat");
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        Ok(Self { file: file.map_err(Error::at("create", &path))?, path })
    }

    /// Writes a count down.
    pub fn beat(&mut self, count: u64) -> Result<(), Error> {
        let write = |file: &mut File| -> io::Result<()> {
            file.rewind()?;
            file.write_all(format!("{count:020}").as_bytes())
        };
        write(&mut self.file).map_err(Error::at("write", &self.path))
    }

    /// The count in a job directory; none where nothing has beaten yet.
    pub fn read(dir: &Path) -> Option<u64> {
        fs::read_to_string(dir.join("heartbeat")).ok()?.parse().ok()
    }
}

/// Reads a JSON file, if there is one.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::at("read", path)(e)),
    };
    let parsed = serde_json::from_slice(&bytes);
    parsed.map(Some).map_err(|e| Error::Corrupt { path: path.to_owned(), message: e.to_string() })
}

/// Reads a JSON file with a `format_version`, if there is one.
///
/// # Errors
/// [`Error::Newer`] when a later version wrote it, whatever else is in it.
pub(super) fn read_versioned<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    let Some(value) = read_json::<serde_json::Value>(path)? else { return Ok(None) };
    match value.get("format_version").and_then(serde_json::Value::as_u64) {
        Some(version) if version > u64::from(FORMAT_VERSION) => {
            Err(Error::Newer { path: path.to_owned(), version, known: u64::from(FORMAT_VERSION) })
        }
        _ => serde_json::from_value(value)
            .map(Some)
            .map_err(|e| Error::Corrupt { path: path.to_owned(), message: e.to_string() }),
    }
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    write_atomic(path, &json_line(path, value)?)
}

fn json_line(path: &Path, value: &impl Serialize) -> Result<Vec<u8>, Error> {
    let mut text = serde_json::to_vec(value)
        .map_err(|e| Error::Json { path: path.to_owned(), message: e.to_string() })?;
    text.push(b'\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_without_a_control_file_is_to_run_and_a_broken_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Control::read(dir.path()).unwrap().want, Desired::Run);
        Control { want: Desired::Cancel, generation: 3 }.write(dir.path()).unwrap();
        let text = fs::read_to_string(dir.path().join("control")).unwrap();
        assert_eq!(text, "{\"want\":\"cancel\",\"gen\":3}\n");
        assert_eq!(Control::read(dir.path()).unwrap().generation, 3);
        fs::write(dir.path().join("control"), "{\"want\":").unwrap();
        assert!(Control::read(dir.path()).unwrap_err().to_string().contains("control`"));
    }

    #[test]
    fn control_may_be_written_from_many_sides() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                scope.spawn(move || {
                    for n in 0..25 {
                        Control { want: Desired::Run, generation: 100 * thread + n }.write(path).unwrap();
                        Control::read(path).unwrap();
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(path).unwrap().count(), 1);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_stranger_with_the_same_process_id_is_not_the_worker() {
        let own = WorkerIdentity::own(1);
        assert!(own.is_alive());
        assert!(!WorkerIdentity { start_time: own.start_time + 1, ..own.clone() }.is_alive());
        assert!(!WorkerIdentity { boot_id: "another".into(), ..own.clone() }.is_alive());
        assert!(!WorkerIdentity { pid: u32::MAX, ..own }.is_alive());
    }

    #[test]
    fn the_heartbeat_is_the_last_count() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Heartbeat::read(dir.path()), None);
        let mut heart = Heartbeat::open(dir.path()).unwrap();
        heart.beat(9_999_999).unwrap();
        heart.beat(12).unwrap();
        assert_eq!(Heartbeat::read(dir.path()), Some(12));
    }
}
