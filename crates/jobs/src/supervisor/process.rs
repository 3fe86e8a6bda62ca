//! Processes: how they end, and how they are ended.

use std::process::ExitStatus;

use super::verdict::Exit;

/// How a child ended.
#[cfg(unix)]
pub(super) fn exit(status: ExitStatus) -> Exit {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, Some(signal)) => Exit::Signal(signal),
        (None, None) => Exit::Unknown,
    }
}

/// How a child ended.
#[cfg(not(unix))]
pub(super) fn exit(status: ExitStatus) -> Exit {
    status.code().map_or(Exit::Unknown, Exit::Code)
}

/// Asks a process to end. Whoever calls this knows that it is the process that is meant.
#[cfg(unix)]
pub(super) fn terminate(pid: u32) {
    send(pid, rustix::process::Signal::TERM);
}

/// Kills a process with all of its group, if it leads one.
#[cfg(unix)]
pub(super) fn kill(pid: u32) {
    use rustix::process::{Signal, getpgid, kill_process_group};
    let Some(pid_of) = pid_of(pid) else { return };
    // A worker that has not made its own group yet is in ours.
    if getpgid(Some(pid_of)) == Ok(pid_of) {
        let _ = kill_process_group(pid_of, Signal::KILL);
    } else {
        send(pid, Signal::KILL);
    }
}

/// Whether a process leads a session, as workers do and commands in a terminal do not.
#[cfg(unix)]
pub(super) fn leads_session(pid: u32) -> bool {
    pid_of(pid).is_some_and(|pid| rustix::process::getsid(Some(pid)) == Ok(pid))
}

#[cfg(unix)]
fn send(pid: u32, signal: rustix::process::Signal) {
    if let Some(pid) = pid_of(pid) {
        // It may have ended just now, which is what was wanted.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

#[cfg(unix)]
fn pid_of(pid: u32) -> Option<rustix::process::Pid> {
    // 1 is never a worker, and what is no positive number would mean many processes.
    i32::try_from(pid).ok().filter(|pid| *pid > 1).and_then(rustix::process::Pid::from_raw)
}

/// Nothing asks a process to end here.
#[cfg(not(unix))]
pub(super) fn terminate(_pid: u32) {}

/// Only children are killed here, by their handle.
#[cfg(not(unix))]
pub(super) fn kill(_pid: u32) {}

/// There are no sessions here.
#[cfg(not(unix))]
pub(super) fn leads_session(_pid: u32) -> bool {
    true
}
