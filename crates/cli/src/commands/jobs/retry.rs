//! `tunesmith retry`.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use serde_json::{Value, json};
use tunesmith_jobs::dir::{JobDir, SpecFile, Submission, sync_dir};
use tunesmith_jobs::store::Job;
use tunesmith_jobs::{Error as JobError, State, submit_with};

use super::create::failed;
use super::view::View;
use super::{checkpoints, name, open, supervise};
use crate::args::RetryArgs;
use crate::commands::train;
use crate::error::CliError;
use crate::spec::JobSpec;
use crate::{engine, out};

/// Makes a new job of an old one.
pub(crate) fn run(args: &RetryArgs) -> Result<(), CliError> {
    let mut store = open()?;
    let old = store.find(&args.which.job)?;
    if !old.state.is_terminal() {
        return Err(CliError::Input {
            code: "not_finished",
            message: format!("job {} is not over ({})", old.id, old.state.as_str()),
            hint: Some(
                "a job is retried when it has ended; a paused one goes on with `tunesmith resume`".to_owned(),
            ),
        });
    }
    let from = store.dir(&old.id);
    let mut spec = SpecFile::read(&from)?.spec;
    let resolved: JobSpec = serde_json::from_value(spec.clone()).map_err(|e| CliError::Input {
        code: "invalid_config",
        message: format!("the spec of job {} cannot be used any more: {e}", old.id),
        hint: Some("`tunesmith create` makes a job of a new spec".to_owned()),
    })?;
    let again = from_start(args, &old);
    let newest = if again.is_some() { None } else { checkpoints::newest(&from)? };
    let frozen = again.is_none() && from.join("data/manifest.json").exists();
    train::preflight_again(&resolved, !frozen)?;
    // A job of an earlier version may not name its device.
    spec["device"] = json!(engine::resolve_device(&resolved.device, args.json)?);

    let submission = Submission {
        priority: old.priority,
        idempotency_key: None,
        retried_from: Some(old.id.clone()),
        on_finish: old.on_finish.clone(),
    };
    let made = submit_with(&mut store, &submission, |dir| {
        if frozen {
            link_dir(&from.join("data"), &dir.path().join("data"))?;
            for path in checkpoints::on_disk(&from).map_err(own)?.into_values() {
                link_dir(&path, &dir.path().join(path.file_name().unwrap_or_default()))?;
            }
        }
        let spec = move_sources(spec, &from, dir)?;
        sync_dir(dir.path())?;
        Ok(spec)
    })?;
    drop(made.dir);
    supervise(store.home())?;
    if args.json {
        return out::json(&View::new(&store, &made.job)?);
    }
    out::line(&made.job.id)?;
    let of = format!("{} again, after job {}", name(&old), old.id);
    out::note(&match (again, newest) {
        (Some(why), _) => format!("{of}: from the start, {why}"),
        (None, Some((step, _))) if frozen => format!("{of}: goes on from step {step}"),
        _ => format!("{of}: from the start, as there is no checkpoint"),
    });
    Ok(())
}

/// Why a job is to begin at the start, if it is.
fn from_start(args: &RetryArgs, old: &Job) -> Option<&'static str> {
    if args.from_start {
        return Some("as was asked");
    }
    if old.state == State::Succeeded {
        return Some("as it got to its end");
    }
    match old.result.as_ref()?.error.as_ref()?.class.as_str() {
        "data" => Some("as its rows were at fault, which are read again"),
        "numeric" => Some("as its numbers were at fault, and its checkpoints may be"),
        _ => None,
    }
}

/// Gives files a second name in a new directory, or a copy where the file system has no second names.
fn link_dir(from: &Path, to: &Path) -> Result<(), JobError> {
    fs::create_dir_all(to).map_err(failed("create", to))?;
    for entry in fs::read_dir(from).map_err(failed("read", from))? {
        let entry = entry.map_err(failed("read", from))?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_name().to_string_lossy().ends_with(".tmp") {
            continue;
        }
        if entry.file_type().map_err(failed("read", &path))?.is_dir() {
            link_dir(&path, &target)?;
        } else {
            link(&path, &target)?;
        }
    }
    sync_dir(to)
}

fn link(from: &Path, to: &Path) -> Result<(), JobError> {
    if fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    let copy = || -> io::Result<()> {
        fs::copy(from, to)?;
        File::options().write(true).open(to)?.sync_all()
    };
    copy().map_err(failed("write", to))
}

/// Rows that the old job brought itself, from standard input, come along: the old job may be removed.
fn move_sources(mut spec: Value, from: &Path, dir: &JobDir) -> Result<Value, JobError> {
    for key in ["/data/train", "/data/validation"] {
        let Some(slot) = spec.pointer_mut(key) else { continue };
        let Some(path) = slot.as_str().map(Path::new).filter(|path| path.starts_with(from)) else { continue };
        let Ok(below) = path.strip_prefix(from) else { continue };
        let target = dir.path().join(below);
        if let Some(folder) = target.parent() {
            fs::create_dir_all(folder).map_err(failed("create", folder))?;
        }
        if !target.exists() {
            link(path, &target)?;
        }
        *slot = json!(target.to_string_lossy());
    }
    Ok(spec)
}

/// What reading the old directory met.
fn own(error: CliError) -> JobError {
    match error {
        CliError::Io { action, path, source } => JobError::Io { action, path, source },
        CliError::Jobs(error) => error,
        other => JobError::Refused { message: other.message(), code: "internal_error" },
    }
}
