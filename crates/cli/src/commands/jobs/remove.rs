//! `tunesmith rm`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use tunesmith_jobs::dir::{is_free, sync_dir};
use tunesmith_jobs::store::Job;
use tunesmith_jobs::{Desired, State, Store};

use super::checkpoints::size;
use super::{io_error, name, open, request, supervise, wait_for};
use crate::args::RemoveJobArgs;
use crate::commands::confirm;
use crate::commands::quote::bytes;
use crate::error::CliError;
use crate::{interrupt, out};

/// How the name of a directory begins that is on its way out.
pub(super) const REMOVED: &str = ".removed-";

/// Longest time that a process may still hold a job that is over.
const LETTING_GO: Duration = Duration::from_secs(5);

/// Removes jobs, after asking.
pub(crate) fn run(args: &RemoveJobArgs) -> Result<(), CliError> {
    let mut store = open()?;
    let jobs = find(&store, args)?;
    if !args.yes && !confirm(&question(&store, &jobs), "remove")? {
        out::note("nothing was removed");
        return Ok(());
    }
    if jobs.iter().any(|job| !job.state.is_terminal()) {
        end(&mut store, &jobs)?;
    }
    let mut removed = Vec::new();
    for job in &jobs {
        remove(&mut store, job)?;
        if !args.json {
            out::line(&format!("removed {} ({})", job.id, name(job)))?;
        }
        removed.push(json!({ "id": job.id, "name": job.name }));
    }
    if args.json { out::json(&removed) } else { Ok(()) }
}

/// The jobs that are meant, each once; all of them can be removed.
fn find(store: &Store, args: &RemoveJobArgs) -> Result<Vec<Job>, CliError> {
    let mut jobs: Vec<Job> = Vec::new();
    for wanted in &args.jobs {
        let job = store.find(wanted)?;
        // A paused job holds nothing and waits for nobody.
        if !job.state.is_terminal() && job.state != State::Paused && !args.force {
            return Err(CliError::Input {
                code: "not_finished",
                message: format!("job {} is not over ({})", job.id, job.state.as_str()),
                hint: Some(format!("`tunesmith cancel {}` first, or add --force", job.id)),
            });
        }
        if jobs.iter().all(|known| known.id != job.id) {
            jobs.push(job);
        }
    }
    Ok(jobs)
}

fn question(store: &Store, jobs: &[Job]) -> String {
    let all: u64 = jobs.iter().map(|job| size(&store.dir(&job.id))).sum();
    let what = match jobs {
        [one] => format!("job {} ({})", one.id, name(one)),
        many => format!("{} jobs", many.len()),
    };
    format!("remove {what} with adapter, checkpoints and rows, {}? [y/N]", bytes(all))
}

/// Cancels what is not over, and waits.
fn end(store: &mut Store, jobs: &[Job]) -> Result<(), CliError> {
    let interrupted = interrupt::install("no longer waiting")?;
    for job in jobs {
        request::ask(store, &job.id, Desired::Cancel)?;
    }
    supervise(store.home())?;
    for job in jobs {
        let stop = || interrupted.load(Ordering::Relaxed);
        wait_for(store, &job.id, stop, |job| job.state.is_terminal())?.ok_or(CliError::Cancelled)?;
    }
    Ok(())
}

/// Removes a job that is over. Its directory gets another name first: what a crash leaves is nobody's job.
fn remove(store: &mut Store, job: &Job) -> Result<(), CliError> {
    let dir = store.dir(&job.id);
    let aside = aside(&dir, &job.id);
    if dir.symlink_metadata().is_ok() {
        let started = Instant::now();
        while !is_free(&dir)? {
            if started.elapsed() > LETTING_GO {
                return Err(tunesmith_jobs::Error::Busy { path: dir }.into());
            }
            thread::sleep(Duration::from_millis(50));
        }
        fs::rename(&dir, &aside).map_err(io_error("remove", &dir))?;
        sync_dir(&store.home().join("jobs"))?;
    }
    tunesmith_jobs::failpoint::hit("rm:renamed");
    store.remove(&job.id)?;
    match fs::remove_dir_all(&aside) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io_error("remove", &aside)(e)),
        _ => Ok(()),
    }
}

fn aside(dir: &Path, id: &str) -> PathBuf {
    dir.with_file_name(format!("{REMOVED}{id}"))
}
