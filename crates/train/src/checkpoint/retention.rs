//! Which checkpoints are kept.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use super::{PREFIX, TMP};
use crate::Error;

/// A checkpoint on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Optimizer steps done.
    pub step: usize,
    /// Whether an epoch ends there.
    pub epoch_end: bool,
    /// Bytes of its files.
    pub bytes: u64,
    /// Whether it is known that nothing can go on from it.
    pub damaged: bool,
}

/// How much may be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Checkpoints that are neither the best nor the last nor at the end of an epoch; any number when absent.
    pub others: Option<usize>,
    /// Bytes of all checkpoints; any number when absent.
    pub bytes: Option<u64>,
}

/// Steps of the checkpoints that are too many, in the order in which they should go. `kept` is sorted by step.
///
/// The best and the last sound one always stay. Damaged ones go first; then, until the limits hold, the oldest of those
/// that are nothing in particular; then, for the bytes only, the oldest ends of epochs.
pub fn excess(kept: &[Kept], best: Option<usize>, limits: Limits) -> Vec<usize> {
    let sound: Vec<&Kept> = kept.iter().filter(|k| !k.damaged).collect();
    let Some(last) = sound.last().map(|k| k.step) else { return Vec::new() };
    let free = |k: &&&Kept| k.step != last && Some(k.step) != best;
    let others: Vec<&Kept> = sound.iter().filter(free).filter(|k| !k.epoch_end).copied().collect();
    let ends = sound.iter().filter(free).filter(|k| k.epoch_end).copied();
    let mut gone: Vec<usize> = kept.iter().filter(|k| k.damaged).map(|k| k.step).collect();
    let surplus = limits.others.map_or(0, |limit| others.len().saturating_sub(limit));
    gone.extend(others[..surplus].iter().map(|k| k.step));

    let budget = limits.bytes.unwrap_or(u64::MAX);
    let mut bytes: u64 = sound.iter().filter(|k| !gone.contains(&k.step)).map(|k| k.bytes).sum();
    for next in others[surplus..].iter().copied().chain(ends) {
        if bytes <= budget {
            break;
        }
        bytes -= next.bytes;
        gone.push(next.step);
    }
    gone
}

/// Removes a checkpoint. It loses its name first, so that a process killed meanwhile leaves nothing that looks whole.
///
/// # Errors
/// The file system refuses.
pub fn remove(path: &Path) -> Result<(), Error> {
    let mut name = OsString::from(path.file_name().unwrap_or_default());
    name.push(".old");
    name.push(TMP);
    let going = path.with_file_name(name);
    if going.symlink_metadata().is_ok() {
        fs::remove_dir_all(&going).map_err(Error::file("remove", &going))?;
    }
    fs::rename(path, &going).map_err(Error::file("remove", path))?;
    fs::remove_dir_all(&going).map_err(Error::file("remove", &going))
}

/// Removes what a process that died left of checkpoints it was writing or removing. Only for the holder of the job's
/// lock.
///
/// # Errors
/// The file system refuses.
pub fn sweep(dir: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(dir).map_err(Error::file("read", dir))? {
        let entry = entry.map_err(Error::file("read", dir))?;
        let left = entry.file_name().to_str().is_some_and(|n| n.starts_with(PREFIX) && n.ends_with(TMP));
        if left {
            fs::remove_dir_all(entry.path()).map_err(Error::file("remove", &entry.path()))?;
        }
    }
    Ok(())
}
