//! Following a job to its end: a bar on a terminal, plain lines elsewhere, or an object for every change.

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use tunesmith_jobs::store::{Job, StoredEvent};
use tunesmith_jobs::{State, Store};

use super::view::{View, exit_code, phase, words};
use super::{LOOK, event, name, supervise};
use crate::commands::train;
use crate::error::CliError;
use crate::progress::{clock, new_bar, thousands};
use crate::{interrupt, out};

/// Shortest time between two plain lines about steps.
const STEPS: Duration = Duration::from_secs(1);

/// How often it is made sure that somebody looks after the jobs.
const SUPERVISE: Duration = Duration::from_secs(5);

/// Events that are read in one go.
const AT_ONCE: usize = 1000;

/// Follows a job from the events after `after` to its end, and says how it ended; the exit code is the job's. Ctrl-C
/// ends the following, not the job.
pub(super) fn run(store: &mut Store, id: &str, after: u64, json: bool) -> Result<ExitCode, CliError> {
    let interrupted = interrupt::install("no longer following")?;
    let shown = if json {
        objects(store, id, &interrupted)?
    } else {
        Screen::new(after).follow(store, id, &interrupted)?
    };
    let Some(job) = shown else {
        out::note(&format!(
            "job {id} goes on; `tunesmith describe {id} --watch` follows it, `tunesmith cancel {id}` stops it"
        ));
        return Ok(ExitCode::from(130));
    };
    if !json {
        ended(&job)?;
    }
    Ok(ExitCode::from(exit_code(&job)))
}

/// Says how a job ended.
fn ended(job: &Job) -> Result<(), CliError> {
    match (job.state, &job.result) {
        (State::Succeeded, Some(result)) => train::report(result),
        (State::Failed, Some(result)) => {
            if let Some(error) = &result.error {
                out::failure(&error.message, error.hint.as_deref());
            }
            Ok(())
        }
        (State::Failed, None) => {
            out::failure(job.reason.as_deref().unwrap_or("the job failed"), None);
            Ok(())
        }
        _ => {
            out::note(&format!("{}: {}", name(job), job.status().as_str()));
            Ok(())
        }
    }
}

/// Takes in what the job's events say and reads the job; sees to its supervisor now and then.
struct Looking {
    supervised: Instant,
}

impl Looking {
    fn new() -> Self {
        Self { supervised: Instant::now() }
    }

    fn look(&mut self, store: &mut Store, id: &str) -> Result<Job, CliError> {
        super::take_in(store, id)?;
        if self.supervised.elapsed() >= SUPERVISE {
            self.supervised = Instant::now();
            supervise(store.home())?;
        }
        Ok(store.job(id)?)
    }
}

/// An object a line, whenever something has changed.
fn objects(store: &mut Store, id: &str, interrupted: &AtomicBool) -> Result<Option<Job>, CliError> {
    let (mut looking, mut last) = (Looking::new(), None);
    loop {
        let job = looking.look(store, id)?;
        let over = job.state.is_terminal();
        if last.as_ref() != Some(&job) {
            out::json_line(&View::new(store, &job)?)?;
            last = Some(job);
        }
        if over {
            return Ok(last);
        }
        if interrupted.load(Ordering::Relaxed) {
            return Ok(None);
        }
        thread::sleep(LOOK);
    }
}

/// What a person sees.
struct Screen {
    terminal: bool,
    bar: Option<ProgressBar>,
    /// The last event that was shown.
    seq: u64,
    /// When the last plain line about a step was shown.
    step: Option<Instant>,
    words: String,
}

impl Screen {
    fn new(after: u64) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { terminal, bar: None, seq: after, step: None, words: String::new() }
    }

    fn follow(
        mut self,
        store: &mut Store,
        id: &str,
        interrupted: &AtomicBool,
    ) -> Result<Option<Job>, CliError> {
        let mut looking = Looking::new();
        loop {
            let job = looking.look(store, id)?;
            self.status(&job);
            loop {
                let events = store.events(id, self.seq, AT_ONCE)?;
                events.iter().for_each(|event| self.event(event, &job));
                if events.len() < AT_ONCE {
                    break;
                }
            }
            self.progress(&job);
            if job.state.is_terminal() {
                self.end();
                return Ok(Some(job));
            }
            if interrupted.load(Ordering::Relaxed) {
                self.end();
                return Ok(None);
            }
            thread::sleep(LOOK);
        }
    }

    /// Says what the job is doing when that has changed.
    fn status(&mut self, job: &Job) {
        let mut text = words(job.state, phase(job.state, job.desired, job.progress.phase.as_deref()));
        if let Some(reason) = &job.reason {
            text = format!("{text}: {}", super::grid::plain(reason));
        }
        if job.state == State::Paused {
            text = format!("{text}; `tunesmith resume {}` lets it go on", job.id);
        }
        if text != self.words && !job.state.is_terminal() {
            self.say(&format!("{}: {text}", name(job)));
            self.words = text;
        }
    }

    fn event(&mut self, event: &StoredEvent, job: &Job) {
        self.seq = event.seq;
        let step = event.kind == "step";
        // What it is doing is said by `status`, and steps by the bar.
        if event.kind == "phase" || (step && self.terminal) {
            return;
        }
        let now = Instant::now();
        let last = step
            && event.data.get("step").and_then(serde_json::Value::as_u64) == Some(job.progress.total_steps);
        if step && !last && self.step.is_some_and(|said| now.duration_since(said) < STEPS) {
            return;
        }
        if step {
            self.step = Some(now);
        }
        self.say(&event::sentence(event));
    }

    fn progress(&mut self, job: &Job) {
        let progress = &job.progress;
        if !self.terminal || progress.total_steps == 0 || job.state != State::Running {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| new_bar(progress.total_steps, "{bar:30} {pos}/{len} {msg}"));
        bar.set_length(progress.total_steps);
        bar.set_position(progress.step);
        let mut message = String::new();
        if let Some(loss) = progress.train_loss {
            message = format!("loss {loss:.4}");
        }
        if let Some(speed) = progress.tokens_per_second {
            message = format!("{message} {} tokens/s", thousands(speed as usize));
        }
        if let Some(left) = progress.eta_seconds().and_then(|left| Duration::try_from_secs_f64(left).ok()) {
            message = format!("{message} eta {}", clock(left));
        }
        bar.set_message(message);
    }

    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => out::note(text),
        }
    }

    fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.abandon();
        }
    }
}
