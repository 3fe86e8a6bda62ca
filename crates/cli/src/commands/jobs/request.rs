//! `tunesmith cancel`, `pause` and `resume`.

use std::sync::atomic::Ordering;

use tunesmith_jobs::dir::{Control, JobResult, Status, rfc3339_now};
use tunesmith_jobs::store::Job;
use tunesmith_jobs::{Answer, Desired, State, Store};

use super::view::{View, phase};
use super::{name, open, supervise, verb, wait_for};
use crate::args::WishArgs;
use crate::error::CliError;
use crate::{interrupt, out};

/// Asks something of a job and says what came of it.
pub(crate) fn run(wish: Desired, args: &WishArgs) -> Result<(), CliError> {
    let mut store = open()?;
    let id = store.find(&args.which.job)?.id;
    let (answer, mut job) = ask(&mut store, &id, wish)?;
    supervise(store.home())?;
    let mut said = words(answer, wish, &job)?;
    if args.wait && !reached(wish, job.state) {
        let interrupted = interrupt::install("no longer waiting")?;
        let stop = || interrupted.load(Ordering::Relaxed);
        let ended = wait_for(&mut store, &id, stop, |job| reached(wish, job.state))?;
        job = ended.ok_or(CliError::Cancelled)?;
        said = waited(wish, &job)?;
    }
    if args.json {
        return out::json(&View::new(&store, &job)?);
    }
    out::line(&format!("{}: {said}", name(&job)))
}

/// Asks something of a job: writes it down in the store and, where it changes what is wanted, in the job's directory.
pub(super) fn ask(store: &mut Store, id: &str, wish: Desired) -> Result<(Answer, Job), CliError> {
    let (answer, job) = store.request(id, wish)?;
    match answer {
        Answer::Wished(_) => publish(store, &job)?,
        Answer::Moved(state, _) => {
            publish(store, &job)?;
            if state == State::Cancelled {
                end(store, &job);
            }
        }
        Answer::Already | Answer::Refused => {}
    }
    Ok((answer, job))
}

/// Writes `control` until it says what the store says: of two requests at once the later one must stay.
fn publish(store: &Store, job: &Job) -> Result<(), CliError> {
    let (mut want, mut generation) = (job.desired, job.generation);
    loop {
        Control { want, generation }.write(&store.dir(&job.id))?;
        let now = store.job(&job.id)?;
        if now.generation == generation {
            return Ok(());
        }
        (want, generation) = (now.desired, now.generation);
    }
}

/// The end of a job that no worker has: its directory says it too, for the day when the store is made again.
fn end(store: &Store, job: &Job) {
    let dir = store.dir(&job.id);
    if dir.join("result.json").exists() {
        return;
    }
    let mut result = JobResult::new(&job.id, &job.name, Status::Cancelled, dir.clone());
    result.fence = job.fence;
    result.finished_at = rfc3339_now();
    result.started_at.clone_from(&result.finished_at);
    result.steps = job.progress.step as usize;
    result.total_steps = job.progress.total_steps as usize;
    if let Err(error) = tunesmith_jobs::dir::write_result(&dir, &result) {
        out::note(&format!("note: the store has it, but the job's directory does not: {error}"));
    }
}

/// What an answer means.
fn words(answer: Answer, wish: Desired, job: &Job) -> Result<&'static str, CliError> {
    let validating = job.state == State::Validating;
    let text = match (answer, wish) {
        (Answer::Refused, _) => return Err(refusal(wish, job)),
        (Answer::Wished(_), Desired::Cancel) if validating => {
            "cancelling: takes effect after the row being read"
        }
        (Answer::Wished(_), Desired::Cancel) => "cancelling: takes effect after the micro-batch in progress",
        (Answer::Wished(_), Desired::Pause) if validating => "pausing: takes effect when its rows are read",
        (Answer::Wished(_), Desired::Pause) => {
            "pausing: takes effect with a checkpoint after the micro-batch in progress"
        }
        (Answer::Wished(_), Desired::Run) => "goes on: it is not to pause any more",
        (Answer::Moved(..), Desired::Cancel) => "cancelled",
        (Answer::Moved(..), Desired::Pause) => "paused",
        (Answer::Moved(..), Desired::Run) => "resumed: waits for its turn",
        (Answer::Already, Desired::Cancel) if job.state == State::Cancelled => "cancelled already",
        (Answer::Already, Desired::Cancel) => "cancelling already",
        (Answer::Already, Desired::Pause) if job.state == State::Paused => "paused already",
        (Answer::Already, Desired::Pause) => "pausing already",
        (Answer::Already, Desired::Run) => "not paused: nothing to resume",
    };
    Ok(text)
}

/// Whether what is wished has come, or cannot come any more.
fn reached(wish: Desired, state: State) -> bool {
    let there = match wish {
        Desired::Cancel => false,
        Desired::Pause => state == State::Paused,
        Desired::Run => state == State::Running,
    };
    there || state.is_terminal()
}

/// What came of waiting.
fn waited(wish: Desired, job: &Job) -> Result<&'static str, CliError> {
    match (wish, job.state) {
        (Desired::Cancel, State::Cancelled) => Ok("cancelled"),
        (Desired::Pause, State::Paused) => Ok("paused"),
        (Desired::Run, State::Running) => Ok("running"),
        // It ran, and quickly.
        (Desired::Run, State::Succeeded) => Ok("over: success"),
        _ => Err(refusal(wish, job)),
    }
}

/// A request that comes too late.
fn refusal(wish: Desired, job: &Job) -> CliError {
    let (id, verb) = (&job.id, verb(wish));
    let (message, hint) = if job.state.is_terminal() {
        let status = job.status().as_str();
        let hint = (wish == Desired::Run).then(|| format!("`tunesmith retry {id}` makes a new job of it"));
        (format!("job {id} is over ({status}): too late to {verb} it"), hint)
    } else {
        let phase = phase(job.state, job.desired, None);
        (format!("job {id} is {phase}: too late to {verb} it"), None)
    };
    CliError::Input { code: "already_finished", message, hint }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_ends_where_the_wish_is_fulfilled_or_lost() {
        for state in State::ALL {
            assert_eq!(reached(Desired::Cancel, state), state.is_terminal());
            assert_eq!(reached(Desired::Pause, state), state.is_terminal() || state == State::Paused);
            assert_eq!(reached(Desired::Run, state), state.is_terminal() || state == State::Running);
        }
    }
}
