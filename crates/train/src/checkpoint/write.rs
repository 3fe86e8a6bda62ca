//! Writing one checkpoint.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use tunesmith_model::peft::{self, AdapterTensor};
use tunesmith_model::{sync_dir, write_file};

use super::manifest::Manifest;
use super::retention::remove;
use super::{Adapter, BEST_PARAMETERS, FIRST_MOMENT, OPTIMIZER_FILE, SECOND_MOMENT, STATE_FILE, TMP, name};
use crate::{Error, Snapshot};

/// A checkpoint that is on the disk.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    /// Optimizer steps done.
    pub step: usize,
    /// Its directory.
    pub path: PathBuf,
    /// Whether an epoch ends here.
    pub epoch_end: bool,
    /// Whether it is the best so far on the held-out rows.
    pub best: bool,
    /// Seconds it took to write.
    pub seconds: f64,
    /// Bytes of its files.
    pub bytes: u64,
}

/// Writes the checkpoint of a snapshot into the directory `dir` of a job; on return it is on the disk under its name.
/// A directory that has the name already, a damaged one that is, is replaced.
///
/// `at` is told the places that a test may want to die at.
///
/// # Errors
/// Values that are not finite, a full disk; then nothing is left behind.
pub fn write(
    dir: &Path,
    snapshot: &Snapshot,
    epoch_end: bool,
    adapter: &Adapter,
    at: &dyn Fn(&str),
) -> Result<Written, Error> {
    let started = Instant::now();
    let state = &snapshot.state;
    let path = dir.join(name(state.step));
    let tmp = dir.join(format!("{}{TMP}", name(state.step)));
    remove_leftover(&tmp)?;
    fs::create_dir(&tmp).map_err(Error::file("create", &tmp))?;
    let built = fill(&tmp, snapshot, epoch_end, adapter, at).and_then(|bytes| {
        sync_dir(&tmp)?;
        at("ckpt:before_rename");
        if path.symlink_metadata().is_ok() {
            remove(&path)?;
        }
        fs::rename(&tmp, &path).map_err(Error::file("create", &path))?;
        at("ckpt:after_rename");
        sync_dir(dir)?;
        Ok(bytes)
    });
    let bytes = built.inspect_err(|_| {
        // What is left would only take room on a disk that may be full; the first error is the one to report.
        let _ = fs::remove_dir_all(&tmp);
    })?;
    Ok(Written {
        step: state.step,
        path,
        epoch_end,
        best: state.best.as_ref().is_some_and(|best| best.step == state.step),
        seconds: started.elapsed().as_secs_f64(),
        bytes,
    })
}

/// Writes the files of a checkpoint, the manifest last; returns how many bytes it lists.
fn fill(
    tmp: &Path,
    snapshot: &Snapshot,
    epoch_end: bool,
    adapter: &Adapter,
    at: &dyn Fn(&str),
) -> Result<u64, Error> {
    let Snapshot { state, parameters, first_moment, second_moment, best_parameters } = snapshot;
    let n = adapter.layout.len();
    let best = best_parameters.as_deref().map(|values| (BEST_PARAMETERS, values));
    let moments = [(FIRST_MOMENT, first_moment.as_slice()), (SECOND_MOMENT, second_moment.as_slice())];
    let tensors: Vec<_> = moments.into_iter().chain(best).collect();
    for (what, values) in tensors.iter().chain([&("parameters", parameters.as_slice())]) {
        if values.len() != n {
            let problem = format!("cannot be written: {what} has {} values instead of {n}", values.len());
            return Err(Error::checkpoint(tmp, problem));
        }
    }
    peft::write(tmp, &adapter.config, &adapter.layout.tensors(parameters))?;
    let flat = |&(key, values): &(&str, _)| AdapterTensor { key: key.to_owned(), shape: [1, n], values };
    let flat: Vec<_> = tensors.iter().map(flat).collect();
    peft::write_tensors(&tmp.join(OPTIMIZER_FILE), &flat)?;
    at("ckpt:after_tmp");
    let path = tmp.join(STATE_FILE);
    let text = serde_json::to_vec_pretty(state).map_err(|e| Error::checkpoint(&path, e.to_string()))?;
    write_file(&path, |out| out.write_all(&text))?;
    let names = [peft::CONFIG_FILE, peft::WEIGHTS_FILE, OPTIMIZER_FILE, STATE_FILE];
    let manifest = Manifest::of(tmp, state.step, epoch_end, &names)?;
    manifest.write(tmp)?;
    Ok(manifest.bytes())
}

fn remove_leftover(tmp: &Path) -> Result<(), Error> {
    if tmp.symlink_metadata().is_ok() {
        fs::remove_dir_all(tmp).map_err(Error::file("remove", tmp))?;
    }
    Ok(())
}
