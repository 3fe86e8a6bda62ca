//! Reading the newest checkpoint that is sound.

use std::path::{Path, PathBuf};

use tunesmith_model::{AdapterLayout, TensorFile, peft};

use super::manifest::{Manifest, Unusable};
use super::retention::Kept;
use super::{
    BEST_PARAMETERS, FIRST_MOMENT, FORMAT_VERSION, OPTIMIZER_FILE, SECOND_MOMENT, STATE_FILE, list, name,
};
use crate::{Error, RunState, STATE_VERSION, Snapshot};

/// What a job directory has of checkpoints.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Found {
    /// The newest sound one: its directory and what it holds.
    pub newest: Option<(PathBuf, Snapshot)>,
    /// Every checkpoint there is, oldest first.
    pub kept: Vec<Kept>,
    /// A sentence about each one that should have been the newest and cannot be used.
    pub damaged: Vec<String>,
}

/// Looks for the newest sound checkpoint of a run in the directory of its job.
///
/// # Errors
/// A directory that cannot be listed, and a checkpoint that is sound but of another run or a later version: going on
/// from an older one would quietly throw work away.
pub fn latest(dir: &Path, layout: &AdapterLayout, fingerprint: &str) -> Result<Found, Error> {
    let mut found = Found::default();
    let mut damaged = Vec::new();
    for (step, path) in list(dir)?.into_iter().rev() {
        let read = Manifest::read(&path);
        let mut kept = match &read {
            Ok(manifest) => {
                Kept { step, epoch_end: manifest.epoch_end, bytes: manifest.bytes(), damaged: false }
            }
            Err(_) => Kept { step, epoch_end: false, bytes: 0, damaged: true },
        };
        if found.newest.is_none() {
            match read.and_then(|manifest| load(&path, step, &manifest, layout, fingerprint)) {
                Ok(Some(snapshot)) => found.newest = Some((path, snapshot)),
                Ok(None) => {
                    let problem = "belongs to another run: the job's settings, its rows or its base model are \
                                   not those it was made with; start a new job";
                    return Err(Error::checkpoint(&path, problem.to_owned()));
                }
                Err(Unusable::Newer(version)) => {
                    let problem = format!(
                        "is of format {version}, which a later version of tunesmith wrote; this one knows up to \
                         {FORMAT_VERSION}"
                    );
                    return Err(Error::checkpoint(&path, problem));
                }
                Err(Unusable::Damaged(problem)) => {
                    kept.damaged = true;
                    damaged.push(format!("checkpoint {} is damaged ({problem})", name(step)));
                }
            }
        }
        found.kept.push(kept);
    }
    found.kept.reverse();
    let instead = match &found.newest {
        Some((_, snapshot)) => format!("going on from {}", name(snapshot.state.step)),
        None => "starting over".to_owned(),
    };
    found.damaged = damaged.into_iter().map(|sentence| format!("{sentence}; {instead}")).collect();
    Ok(found)
}

/// Checks that a checkpoint is what was written, whichever run it is of.
///
/// # Errors
/// A sentence about what is damaged.
pub fn verify(path: &Path) -> Result<(), Error> {
    let sound = Manifest::read(path).and_then(|manifest| manifest.verify(path));
    sound.map_err(|unusable| match unusable {
        Unusable::Damaged(problem) => Error::checkpoint(path, format!("is damaged: {problem}")),
        Unusable::Newer(version) => Error::checkpoint(
            path,
            format!("is of format {version}, which a later version of tunesmith wrote"),
        ),
    })
}

/// What a checkpoint holds; nothing if it is of another run.
fn load(
    path: &Path,
    step: usize,
    manifest: &Manifest,
    layout: &AdapterLayout,
    fingerprint: &str,
) -> Result<Option<Snapshot>, Unusable> {
    let damaged = |problem: String| Unusable::Damaged(problem);
    let names = [peft::CONFIG_FILE, peft::WEIGHTS_FILE, OPTIMIZER_FILE, STATE_FILE];
    let listed: Vec<&str> = manifest.files.iter().map(|f| f.file.as_str()).collect();
    if listed != names || manifest.step != step {
        return Err(damaged("its manifest is not that of its files".to_owned()));
    }
    manifest.verify(path)?;
    let Some(state) = state(path, step, fingerprint)? else { return Ok(None) };

    let model = |e: tunesmith_model::Error| damaged(e.to_string());
    let (_, tensors) = peft::load(path).map_err(model)?;
    peft::check(path, &layout.expected(), &tensors).map_err(model)?;
    let parameters = layout.flatten(&tensors);
    let file = TensorFile::open(&path.join(OPTIMIZER_FILE)).map_err(model)?;
    let flat = |name: &str| {
        let values = file.read_f32(name).map_err(model)?;
        if values.len() != layout.len() || !values.iter().all(|v| v.is_finite()) {
            return Err(damaged(format!("`{name}` is not of this adapter's size, or not finite")));
        }
        Ok(values)
    };
    let (first_moment, second_moment) = (flat(FIRST_MOMENT)?, flat(SECOND_MOMENT)?);
    let best_parameters = file.shape(BEST_PARAMETERS).is_some().then(|| flat(BEST_PARAMETERS)).transpose()?;
    if best_parameters.is_some() && state.best.is_none() {
        return Err(damaged("it holds best parameters of no evaluation".to_owned()));
    }
    Ok(Some(Snapshot { state, parameters, first_moment, second_moment, best_parameters }))
}

/// The state of a checkpoint whose digests are right; nothing if it is of another run.
fn state(path: &Path, step: usize, fingerprint: &str) -> Result<Option<RunState>, Unusable> {
    let damaged = |problem: String| Unusable::Damaged(format!("{STATE_FILE} {problem}"));
    let bytes = std::fs::read(path.join(STATE_FILE)).map_err(|e| damaged(format!("cannot be read: {e}")))?;
    let value: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|e| damaged(format!("is no JSON: {e}")))?;
    match value["version"].as_u64() {
        Some(version) if version > u64::from(STATE_VERSION) => return Err(Unusable::Newer(version)),
        _ => {}
    }
    let state: RunState =
        serde_json::from_value(value).map_err(|e| damaged(format!("makes no sense: {e}")))?;
    if state.version != STATE_VERSION || state.step != step {
        return Err(damaged("is of another version or step".to_owned()));
    }
    Ok((state.fingerprint == fingerprint).then_some(state))
}
