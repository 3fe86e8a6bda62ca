//! `tunesmith serve`, and the start of a supervisor where a command needs one.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tunesmith_jobs::supervisor::{self, Launcher, Settings, Stage, Supervisor};
use tunesmith_jobs::{Desired, Error, State, Store, dir};

use crate::args::ServeArgs;
use crate::error::CliError;
use crate::{engine, interrupt, out, program};

/// Seconds without work after which a supervisor that was started on demand goes.
const IDLE_EXIT: &str = "30";

/// Supervises the workspace until it is told to stop.
pub(crate) fn run(args: &ServeArgs) -> Result<(), CliError> {
    let home = dir::home()?;
    let on_demand = args.idle_exit.is_some();
    if on_demand {
        detach();
    }
    let settings = Settings {
        devices: devices(&args.device)?,
        idle_exit: args.idle_exit.map(Duration::from_secs),
        drain: args.drain,
        hang: hang()?,
        ..Settings::default()
    };
    let devices = settings.devices.join(", ");
    let workers = Workers { program: program::own().map_err(unknown_program)? };
    let mut supervisor = match Supervisor::new(&home, settings, workers) {
        Ok(supervisor) => supervisor,
        // Two commands have seen at one time that there is none: one is enough.
        Err(Error::Supervised { .. }) if on_demand => return Ok(()),
        Err(error @ Error::Supervised { .. }) => {
            return Err(CliError::Unavailable {
                code: "already_running",
                message: error.to_string(),
                hint: Some("jobs run under it; to replace it, end that process first".to_owned()),
            });
        }
        Err(error) => return Err(error.into()),
    };
    let stop = interrupt::install(if args.drain {
        "waiting for checkpoints; press Ctrl-C again to stop at once, workers go on"
    } else {
        "stopping; workers go on"
    })?;
    if !on_demand {
        out::note(&format!("jobs in {} run on {devices}; Ctrl-C stops, workers go on", home.display()));
        // A line that cannot be printed is in `supervisor.log` too.
        supervisor.listen(Box::new(|line| drop(out::line(line))));
    }
    supervisor.run(&stop);
    Ok(())
}

/// Sees to it that somebody looks after the jobs of a workspace: where jobs wait or run and no supervisor does, one is
/// started, detached from this process and its terminal. `TUNESMITH_SUPERVISOR=off` leaves that to the user.
///
/// # Errors
/// A store that cannot be read; a process that cannot be started.
pub(crate) fn ensure(home: &Path) -> Result<(), CliError> {
    if std::env::var_os("TUNESMITH_SUPERVISOR").is_some_and(|value| value == "off")
        || !home.join("jobs.sqlite").exists()
        || supervisor::running(home)?.is_some()
    {
        return Ok(());
    }
    let rests = |state, desired| match state {
        State::Paused => true,
        State::Running => false,
        _ => desired == Desired::Pause,
    };
    if Store::open(home)?.live()?.iter().all(|job| rests(job.state, job.desired)) {
        return Ok(());
    }
    let program = std::env::current_exe().map_err(unknown_program)?;
    let path = home.join("supervisor.log");
    let log = File::options().create(true).append(true).open(&path);
    let log = log.map_err(|source| CliError::Io { action: "create", path, source })?;
    let mut command = Command::new(&program);
    command.args(["serve", "--idle-exit", IDLE_EXIT]).env("TUNESMITH_HOME", home).current_dir(home);
    let started = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
    started.map(drop).map_err(|source| CliError::Io { action: "start", path: program, source })
}

/// Starts workers: this program again.
struct Workers {
    program: PathBuf,
}

impl Launcher for Workers {
    fn command(&self, dir: &Path, stage: Stage) -> Command {
        let mut command = Command::new(&self.program);
        #[cfg(unix)]
        std::os::unix::process::CommandExt::arg0(&mut command, "tunesmith");
        command.arg("worker").arg(dir).args(["--stage", stage.as_str()]);
        command
    }
}

fn unknown_program(source: std::io::Error) -> CliError {
    CliError::Io { action: "find", path: "the program of this process".into(), source }
}

/// The devices that were asked for, or all there are.
fn devices(asked: &[String]) -> Result<Vec<String>, CliError> {
    if asked.is_empty() {
        return Ok(engine::devices());
    }
    let mut devices: Vec<String> = Vec::new();
    for device in asked {
        engine::check_device(device)?;
        if !devices.contains(device) {
            devices.push(device.clone());
        }
    }
    Ok(devices)
}

/// Silence after which a worker hangs: `TUNESMITH_HANG_SECONDS`.
fn hang() -> Result<Duration, CliError> {
    let Some(text) = std::env::var_os("TUNESMITH_HANG_SECONDS").filter(|text| !text.is_empty()) else {
        return Ok(Settings::default().hang);
    };
    let seconds = text.to_str().and_then(|text| text.parse().ok()).filter(|seconds| *seconds > 0);
    seconds.map(Duration::from_secs).ok_or_else(|| CliError::Usage {
        message: format!(
            "TUNESMITH_HANG_SECONDS is `{}`, and not a whole number of seconds above 0",
            text.display()
        ),
        hint: None,
    })
}

/// Leaves the terminal and the session of the command that started this process.
#[cfg(unix)]
fn detach() {
    // It fails only for a process that leads a session already, which is as good.
    let _ = rustix::process::setsid();
}

#[cfg(not(unix))]
fn detach() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_those_asked_for_once_each_or_all() {
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(devices(&names(&["cpu", "cpu"])).unwrap(), ["cpu"]);
        assert_eq!(devices(&[]).unwrap()[0], "cpu");
        if cfg!(not(feature = "cuda")) {
            assert!(devices(&names(&["cuda:0"])).unwrap_err().to_string().contains("cuda:0"));
        }
    }
}
