//! `on_finish`: the command that a user wants run when a job is over.
//!
//! It is run once, or not at all if the machine or the supervisor dies in that very moment: a notice is taken before
//! its command starts.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::process;
use super::verdict::Exit;
use crate::State;
use crate::dir::Status;
use crate::store::Job;

/// Longest time that a command may take.
const LONGEST: Duration = Duration::from_mins(1);

/// Most commands at one time.
const AT_ONCE: usize = 4;

/// The commands that run.
#[derive(Debug, Default)]
pub(super) struct Notices {
    running: Vec<(String, Child, Duration)>,
}

impl Notices {
    /// Whether no command runs.
    pub(super) fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// Whether another one may start.
    pub(super) fn has_room(&self) -> bool {
        self.running.len() < AT_ONCE
    }

    /// Starts a job's command, with what it is told in its environment and its output in the job's log.
    pub(super) fn start(
        &mut self,
        job: &Job,
        dir: &Path,
        command: &str,
        now: Duration,
    ) -> Result<(), String> {
        let log = || -> std::io::Result<(Stdio, Stdio)> {
            let file = std::fs::File::options().create(true).append(true).open(dir.join("log"))?;
            Ok((file.try_clone()?.into(), file.into()))
        };
        let (out, err) = log().unwrap_or_else(|_| (Stdio::null(), Stdio::null()));
        let status = match job.state {
            State::Succeeded => "success",
            State::Cancelled => "cancelled",
            _ => "error",
        };
        let result = job.result.as_ref().filter(|result| result.status == Status::Success);
        let mut shell = shell(command);
        shell
            .env("TUNESMITH_JOB_ID", &job.id)
            .env("TUNESMITH_JOB_NAME", &job.name)
            .env("TUNESMITH_JOB_STATUS", status)
            .env("TUNESMITH_JOB_DIR", dir)
            .env("TUNESMITH_ADAPTER", result.and_then(|r| r.adapter.clone()).unwrap_or_default())
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err);
        let child = shell.spawn().map_err(|e| e.to_string())?;
        self.running.push((job.id.clone(), child, now));
        Ok(())
    }

    /// Reaps what has ended and ends what takes too long; returns what there is to say about that, by job.
    pub(super) fn watch(&mut self, now: Duration) -> Vec<(String, String)> {
        let mut said = Vec::new();
        self.running.retain_mut(|(id, child, since)| match child.try_wait() {
            Ok(None) if now.saturating_sub(*since) < LONGEST => true,
            Ok(None) => {
                process::kill(child.id());
                // By its handle too, where there are no groups.
                let _ = child.kill();
                let _ = child.wait();
                said.push((id.clone(), "its command took longer than 60 s and was ended".to_owned()));
                false
            }
            Ok(Some(status)) => {
                match process::exit(status) {
                    Exit::Code(0) => {}
                    Exit::Code(code) => {
                        said.push((id.clone(), format!("its command ended with code {code}")));
                    }
                    exit => said.push((id.clone(), format!("its command {exit}"))),
                }
                false
            }
            Err(_) => false,
        });
        said
    }
}

#[cfg(unix)]
fn shell(command: &str) -> Command {
    use std::os::unix::process::CommandExt as _;
    let mut shell = Command::new("sh");
    // A group of its own, so that all of it can be ended, and so that Ctrl-C in our terminal does not.
    shell.arg("-c").arg(command).process_group(0);
    shell
}

#[cfg(not(unix))]
fn shell(command: &str) -> Command {
    let mut shell = Command::new("cmd");
    shell.arg("/C").arg(command);
    shell
}
