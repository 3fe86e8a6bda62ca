//! The verbs on jobs: `create`, `show`, `describe`, `cancel`, `pause`, `resume`, `retry`, `logs`, `rm`, `doctor`.

mod checkpoints;
mod create;
mod describe;
mod doctor;
mod event;
mod foreground;
mod list;
mod logs;
mod remove;
mod request;
mod retry;
mod view;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::Once;
use std::thread;
use std::time::Duration;

use tunesmith_jobs::dir::{self as jobdir, is_disk_full, rfc3339};
use tunesmith_jobs::store::Job;
use tunesmith_jobs::{Desired, Error, Store};

use crate::commands::data::grid;
use crate::error::CliError;
use crate::out;

pub(crate) use create::run as create;
pub(crate) use describe::run as describe;
pub(crate) use doctor::run as doctor;
pub(crate) use foreground::Booking;
pub(crate) use list::run as list;
pub(crate) use logs::run as logs;
pub(crate) use remove::run as remove;
pub(crate) use request::run as request;
pub(crate) use retry::run as retry;

/// How often a job that is waited for is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// The store of the workspace, with everything taken in that the live jobs say, and somebody to look after them.
fn open() -> Result<Store, CliError> {
    let home = jobdir::home()?;
    let mut store = Store::open(&home)?;
    let taken = store.ingest_live();
    up_to_date(taken)?;
    supervise(&home)?;
    Ok(store)
}

/// Takes in what the events of a job say.
fn take_in(store: &mut Store, id: &str) -> Result<(), CliError> {
    let taken = store.ingest(id).map(|_| ());
    up_to_date(taken)
}

/// On a disk without room what is known already can still be shown.
fn up_to_date(taken: Result<(), Error>) -> Result<(), CliError> {
    static SAID: Once = Once::new();
    match taken {
        Err(error) if error.io().is_some_and(is_disk_full) => {
            SAID.call_once(|| out::note(&format!("note: the newest events are not shown: {error}")));
            Ok(())
        }
        taken => Ok(taken?),
    }
}

/// Sees to it that somebody looks after the jobs that are not over.
fn supervise(home: &Path) -> Result<(), CliError> {
    super::serve::ensure(home)
}

/// Finds a job and looks again, until `done` says that it is enough; none when `stop` says so first.
fn wait_for(
    store: &mut Store,
    id: &str,
    stop: impl Fn() -> bool,
    done: impl Fn(&Job) -> bool,
) -> Result<Option<Job>, CliError> {
    loop {
        take_in(store, id)?;
        let job = store.job(id)?;
        if done(&job) {
            return Ok(Some(job));
        }
        if stop() {
            return Ok(None);
        }
        thread::sleep(LOOK);
    }
}

/// A name that people gave and a terminal only shows.
fn name(job: &Job) -> String {
    grid::plain(&job.name)
}

/// A moment for people: `2026-01-31 23:59:59`, in UTC.
fn moment(millis: i64) -> String {
    let since = Duration::from_millis(u64::try_from(millis).unwrap_or_default());
    let text = rfc3339(std::time::UNIX_EPOCH + since);
    text.get(..19).unwrap_or(&text).replace('T', " ")
}

/// What somebody asks of a job, as a verb.
fn verb(wish: Desired) -> &'static str {
    match wish {
        Desired::Cancel => "cancel",
        Desired::Pause => "pause",
        Desired::Run => "resume",
    }
}

/// An I/O error of ours.
fn io_error(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> CliError {
    let path: PathBuf = path.to_owned();
    move |source| CliError::Io { action, path, source }
}
