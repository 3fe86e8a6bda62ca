//! The job directories, against themselves and against the store.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tunesmith_jobs::State;
use tunesmith_jobs::dir::{self, SpecFile};
use tunesmith_jobs::store::Summary;

use super::{Findings, Room};
use crate::commands::jobs::checkpoints::{on_disk, size};
use crate::commands::jobs::io_error;
use crate::commands::jobs::remove::REMOVED;
use crate::error::CliError;

/// Checks every directory; the room that each takes.
pub(super) fn check(
    home: &Path,
    jobs: Option<&[Summary]>,
    findings: &mut Findings,
) -> Result<Vec<Room>, CliError> {
    let folder = home.join("jobs");
    let mut rows: BTreeMap<&str, &Summary> =
        jobs.unwrap_or_default().iter().map(|job| (job.id.as_str(), job)).collect();
    let mut disk = Vec::new();
    for path in entries(&folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let shown = path.display();
        if name.starts_with(REMOVED) {
            let message = format!("`{shown}` is what an interrupted `rm` left");
            findings.add("left_over", None, message, "remove the directory");
        } else if !dir::is_id(&name) || !path.is_dir() {
            let message = format!("`{shown}` is no job");
            findings.add("not_a_job", None, message, "move it away");
        } else {
            let row = rows.remove(name.as_str());
            if row.is_none() && jobs.is_some() {
                no_row(&path, &name, findings);
            }
            one(&path, &name, row, findings)?;
        }
        disk.push(Room { bytes: size(&path), id: name });
    }
    for id in rows.into_keys() {
        let message = format!("job {id} is in the store, but its directory is gone");
        let fix = format!("`tunesmith rm {id}` forgets it; cancel it first if it is not over");
        findings.add("no_directory", Some(id), message, fix);
    }
    Ok(disk)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, CliError> {
    let read = match fs::read_dir(folder) {
        Ok(read) => read,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(io_error("read", folder)(e)),
    };
    let mut paths = read
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(io_error("read", folder))?;
    paths.sort();
    Ok(paths)
}

fn no_row(path: &Path, id: &str, findings: &mut Findings) {
    if !dir::is_free(path).unwrap_or(true) {
        // A job that is being made, or removed, at this moment.
        return;
    }
    let message = format!("`{}` is in no row of the store", path.display());
    let fix = if path.join("spec.json").exists() {
        "`tunesmith doctor --rebuild` takes it in; remove the directory if nobody misses it"
    } else {
        "remove the directory: no job came of it"
    };
    findings.add("no_row", Some(id), message, fix);
}

fn one(path: &Path, id: &str, row: Option<&Summary>, findings: &mut Findings) -> Result<(), CliError> {
    if path.join("spec.json").exists() || row.is_some() {
        spec(path, id, findings);
    }
    result(path, id, row, findings);
    frozen(path, id, findings);
    for (_, checkpoint) in on_disk(path)? {
        if let Err(problem) = tunesmith_train::checkpoint::verify(&checkpoint) {
            let fix = "the job goes on from the one before it; remove the directory";
            findings.add("checkpoint_corrupt", Some(id), problem.to_string(), fix);
        }
    }
    // What a live worker is building is no leftover.
    if dir::is_free(path).unwrap_or(false) {
        for left in leftovers(path) {
            let message = format!("`{}` is what an interrupted write left", left.display());
            findings.add("left_over", Some(id), message, "remove it; nothing reads it");
        }
    }
    Ok(())
}

fn spec(path: &Path, id: &str, findings: &mut Findings) {
    let fix = format!("the job cannot be run or retried: `tunesmith rm {id}`, and make it again");
    match SpecFile::read(path) {
        Ok(spec) if spec.id == id => {}
        Ok(spec) => {
            let message = format!("`{}` holds the spec of job {}", path.display(), spec.id);
            findings.add("spec_damaged", Some(id), message, fix);
        }
        Err(error) => findings.add("spec_damaged", Some(id), error.to_string(), fix),
    }
}

/// Whether the directory and the store tell the same end.
fn result(path: &Path, id: &str, row: Option<&Summary>, findings: &mut Findings) {
    let fix = "`tunesmith doctor --rebuild` believes the directory";
    match dir::read_result(path) {
        Err(error) => {
            let fix = "the store still knows how the job ended; do not rebuild it without this file";
            findings.add("result_damaged", Some(id), error.to_string(), fix);
        }
        Ok(None) => {
            if row.is_some_and(|row| row.state == State::Succeeded) {
                let message = format!("job {id} has succeeded, but there is no result.json in its directory");
                findings.add("no_result", Some(id), message, "`tunesmith retry` makes a new job of it");
            }
        }
        Ok(Some(result)) => {
            if let Some(row) = row
                && row.state.is_terminal()
                && row.state != result.status.state()
            {
                let (said, found) = (row.state.as_str(), result.status.state().as_str());
                let message = format!("job {id} is {said} in the store and {found} in its directory");
                findings.add("ends_differ", Some(id), message, fix);
            }
            if let Some(adapter) = result.adapter.filter(|adapter| adapter.starts_with(path))
                && !adapter.is_dir()
            {
                let message = format!("the adapter of job {id}, `{}`, is gone", adapter.display());
                findings.add("no_adapter", Some(id), message, "`tunesmith retry` makes a new job of it");
            }
        }
    }
}

/// Whether the frozen rows are what was frozen.
fn frozen(path: &Path, id: &str, findings: &mut Findings) {
    let fix = "start it again from its source: `tunesmith retry --from-start`";
    let manifest = match dir::read_manifest(path) {
        Ok(Some(manifest)) => manifest,
        Ok(None) => return,
        Err(error) => return findings.add("data_damaged", Some(id), error.to_string(), fix),
    };
    for file in std::iter::once(&manifest.train).chain(&manifest.validation) {
        if let Err(error) = file.open(&path.join("data")) {
            findings.add("data_damaged", Some(id), error.to_string(), fix);
        }
    }
}

/// Temporary files and directories of writes that did not come to their end.
fn leftovers(path: &Path) -> Vec<PathBuf> {
    let below = [path.to_owned(), path.join("data")];
    let entries = below.iter().flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten());
    let mut left: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.file_name().unwrap_or_default().to_string_lossy().ends_with(".tmp"))
        .collect();
    left.sort();
    left
}
