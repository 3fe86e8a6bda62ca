//! The checkpoints of a job: what its events tell of and its directory holds.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;
use tunesmith_jobs::Store;
use tunesmith_jobs::store::Job;

use super::io_error;
use crate::error::CliError;

/// A checkpoint that is on the disk.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Kept {
    /// Optimizer steps done.
    pub(super) step: u64,
    /// Its directory.
    pub(super) path: PathBuf,
    /// Bytes of its files.
    pub(super) bytes: u64,
    /// Held-out loss at it, if it was evaluated there.
    pub(super) validation_loss: Option<f64>,
    /// Whether it has the lowest held-out loss.
    pub(super) best: bool,
    /// Whether it is the newest.
    pub(super) last: bool,
}

/// The checkpoints of a job by step.
pub(super) fn list(store: &Store, job: &Job) -> Result<Vec<Kept>, CliError> {
    let mut kept: Vec<Kept> = on_disk(&store.dir(&job.id))?
        .into_iter()
        .map(|(step, path)| {
            let bytes = size(&path);
            Kept { step, path, bytes, validation_loss: None, best: false, last: false }
        })
        .collect();
    if kept.is_empty() {
        return Ok(kept);
    }
    let losses = losses(store, &job.id)?;
    for one in &mut kept {
        one.validation_loss = losses.get(&one.step).copied();
    }
    let lowest = |a: &&mut Kept, b: &&mut Kept| {
        let loss = |k: &Kept| k.validation_loss.unwrap_or(f64::INFINITY);
        loss(a).total_cmp(&loss(b))
    };
    if let Some(best) = kept.iter_mut().min_by(lowest) {
        best.best = best.validation_loss.is_some();
    }
    if let Some(last) = kept.last_mut() {
        last.last = true;
    }
    Ok(kept)
}

/// The newest checkpoint of a job directory.
pub(super) fn newest(dir: &Path) -> Result<Option<(u64, PathBuf)>, CliError> {
    Ok(on_disk(dir)?.into_iter().next_back())
}

/// The whole checkpoints of a job directory, by step.
pub(super) fn on_disk(dir: &Path) -> Result<BTreeMap<u64, PathBuf>, CliError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(e) => return Err(io_error("read", dir)(e)),
    };
    let mut found = BTreeMap::new();
    for entry in entries {
        let entry = entry.map_err(io_error("read", dir))?;
        if let Some(step) = step_of(&entry.file_name().to_string_lossy()) {
            found.insert(step, entry.path());
        }
    }
    Ok(found)
}

/// `ckpt-00000012`, and nothing that is still being built.
fn step_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("ckpt-")?;
    let whole = digits.len() >= 8 && digits.bytes().all(|b| b.is_ascii_digit());
    whole.then(|| digits.parse().ok()).flatten()
}

/// Held-out losses by step.
fn losses(store: &Store, id: &str) -> Result<BTreeMap<u64, f64>, CliError> {
    let events = store.events_of(id, "evaluation", usize::MAX)?;
    let of = |data: &Value| Some((data.get("step")?.as_u64()?, data.get("loss")?.as_f64()?));
    Ok(events.iter().filter_map(|event| of(&event.data)).collect())
}

/// Bytes of the files below a path; what cannot be read counts nothing.
pub(super) fn size(path: &Path) -> u64 {
    let Ok(about) = path.symlink_metadata() else { return 0 };
    if !about.is_dir() {
        return about.len();
    }
    fs::read_dir(path).into_iter().flatten().flatten().map(|entry| size(&entry.path())).sum()
}

#[cfg(test)]
mod tests {
    use super::step_of;

    #[test]
    fn only_whole_checkpoints_count() {
        assert_eq!(step_of("ckpt-00000012"), Some(12));
        assert_eq!(step_of("ckpt-123456789"), Some(123_456_789));
        for name in
            ["ckpt-00000012.tmp", "ckpt-12", "ckpt-", ".tmp-ckpt-00000012", "adapter", "ckpt-+0000012"]
        {
            assert_eq!(step_of(name), None, "{name}");
        }
    }
}
