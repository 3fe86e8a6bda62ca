//! `tunesmith serve`, and the start of a supervisor where a command needs one.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use tunesmith_jobs::{State, Store, supervisor};

use crate::error::CliError;

/// Seconds without work after which a supervisor that was started on demand goes.
const IDLE_EXIT: &str = "30";

/// Sees to it that somebody looks after the jobs of a workspace: where jobs wait or run and no supervisor does, one is
/// started, detached from this process and its terminal. `TUNESMITH_SUPERVISOR=off` leaves that to the user.
///
/// # Errors
/// A store that cannot be read; a process that cannot be started.
pub(crate) fn ensure(home: &Path) -> Result<(), CliError> {
    if std::env::var_os("TUNESMITH_SUPERVISOR").is_some_and(|value| value == "off")
        || !home.join("jobs.sqlite").exists()
        || supervisor::running(home)?.is_some()
        || Store::open(home)?.live()?.iter().all(|job| job.state == State::Paused)
    {
        return Ok(());
    }
    let program = std::env::current_exe().map_err(|source| CliError::Io {
        action: "find",
        path: "the program of this process".into(),
        source,
    })?;
    let path = home.join("supervisor.log");
    let log = File::options().create(true).append(true).open(&path);
    let log = log.map_err(|source| CliError::Io { action: "create", path, source })?;
    // Two that are started at once are one soon: the second finds the lock taken and goes.
    let mut command = Command::new(&program);
    command.args(["serve", "--idle-exit", IDLE_EXIT]).env("TUNESMITH_HOME", home).current_dir(home);
    let started = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
    started.map(drop).map_err(|source| CliError::Io { action: "start", path: program, source })
}
