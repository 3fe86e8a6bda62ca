//! Showing a run while it goes: a bar on a terminal, plain lines elsewhere. All of it on standard error.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
pub use tunesmith_data::check::thousands;
use tunesmith_train::Event;

use crate::out;

/// Shortest time between two plain lines about steps.
const PLAIN_INTERVAL: Duration = Duration::from_secs(1);

/// Shortest time between two plain lines about rows.
const ROWS_INTERVAL: Duration = Duration::from_secs(10);

/// Shows loading, steps and evaluations.
#[derive(Debug)]
pub struct Progress {
    mode: Mode,
    rate: Rate,
    /// When rows were first told.
    started: Option<Instant>,
    /// Counts what is done: rows, tensors, micro-batches, tokens.
    pulse: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Mode {
    Quiet,
    Plain { last: Option<Instant> },
    Bar { bar: Option<ProgressBar> },
}

impl Progress {
    /// A bar when standard error is a terminal, plain lines otherwise, nothing when `quiet`.
    pub fn new(quiet: bool) -> Self {
        let mode = if quiet {
            Mode::Quiet
        } else if std::io::stderr().is_terminal() {
            Mode::Bar { bar: None }
        } else {
            Mode::Plain { last: None }
        };
        Self { mode, rate: Rate::default(), started: None, pulse: Arc::default() }
    }

    /// A count that moves when the work does, and only then.
    pub fn pulse(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.pulse)
    }

    /// A piece of work is done that is too small to be shown.
    pub fn beat(&self) {
        self.pulse.fetch_add(1, Ordering::Relaxed);
    }

    /// `done` of `total` bytes of the base model are read. Lines are said of what takes long, bars at once.
    pub fn loading(&mut self, done: u64, total: u64) {
        self.beat();
        let now = Instant::now();
        if let Mode::Plain { last } = &mut self.mode {
            // The first call starts the clock.
            if now.duration_since(*last.get_or_insert(now)) >= ROWS_INTERVAL && done < total {
                *last = Some(now);
                out::note(&format!(
                    "loading the model: {:.1} of {:.1} GB",
                    done as f64 / 1e9,
                    total as f64 / 1e9
                ));
            }
            if done >= total {
                *last = None;
            }
        }
        self.bar(done, total, "loading the model {bar:30} {bytes}/{total_bytes} {bytes_per_sec}");
    }

    /// Takes away the bar of something whose end was not known before.
    pub fn read(&mut self) {
        if let Mode::Bar { bar } = &mut self.mode
            && let Some(bar) = bar.take()
        {
            bar.finish_and_clear();
        }
    }

    /// `done` of `total` bytes of a file are downloaded.
    pub fn download(&mut self, file: &str, done: u64, total: u64) {
        self.beat();
        if done == 0 && matches!(self.mode, Mode::Plain { .. }) {
            out::note(&format!("downloading {file} ({} bytes)", thousands(total as usize)));
        }
        self.bar(done, total, "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}");
        if let Mode::Bar { bar: Some(bar) } = &self.mode {
            bar.set_message(file.to_owned());
        }
    }

    /// So many rows of a source whose end is not known. Nothing is said in the first second.
    pub fn rows(&mut self, doing: &str, done: u64) {
        self.beat();
        let plain = || format!("{doing}: {} rows", thousands(done as usize));
        self.endless(done, doing, "{spinner} {msg} {human_pos} rows, {per_sec}", plain);
    }

    /// So many checks are done, the last of them of `what`. Nothing is said in the first second.
    pub fn checking(&mut self, what: &str, done: usize) {
        let plain = || format!("{done} checks done, the last of {what}");
        self.endless(done as u64, what, "{spinner} {pos} checks done, {msg}", plain);
    }

    /// Work whose end is not known, from its second second on: a spinner with a message, or a plain line now and then.
    fn endless(&mut self, done: u64, message: &str, template: &str, plain: impl FnOnce() -> String) {
        let now = Instant::now();
        let started = *self.started.get_or_insert(now);
        if now.duration_since(started) < PLAIN_INTERVAL {
            return;
        }
        match &mut self.mode {
            Mode::Quiet => {}
            Mode::Plain { last } => {
                if last.is_none_or(|last| now.duration_since(last) >= ROWS_INTERVAL) {
                    *last = Some(now);
                    out::note(&plain());
                }
            }
            Mode::Bar { bar } => {
                let bar = bar.get_or_insert_with(|| new_bar(u64::MAX, template));
                bar.set_message(message.to_owned());
                bar.set_position(done);
            }
        }
    }

    /// Moves a bar that goes away when it is full.
    fn bar(&mut self, done: u64, total: u64, template: &str) {
        let Mode::Bar { bar } = &mut self.mode else { return };
        if done >= total {
            if let Some(bar) = bar.take() {
                bar.finish_and_clear();
            }
            return;
        }
        bar.get_or_insert_with(|| new_bar(total, template)).set_position(done);
    }

    /// Shows an event of the run.
    pub fn event(&mut self, event: &Event) {
        self.rate.take(event);
        match &mut self.mode {
            Mode::Quiet => {}
            Mode::Plain { last } => {
                let now = Instant::now();
                if is_due(event, *last, now) {
                    if matches!(event, Event::Step { .. }) {
                        *last = Some(now);
                    }
                    out::note(&plain(event, &self.rate));
                }
            }
            Mode::Bar { bar } => match event {
                Event::Plan { total_steps, .. } => {
                    out::note(&plain(event, &self.rate));
                    *bar = Some(new_bar(*total_steps as u64, "{bar:30} {pos}/{len} {msg} eta {eta}"));
                }
                Event::Step { step, loss, .. } => {
                    if let Some(bar) = bar {
                        bar.set_message(format!(
                            "loss {loss:.4} {} tokens/s",
                            thousands(self.rate.tokens_per_second())
                        ));
                        bar.set_position(*step as u64);
                    }
                }
                _ => {
                    let line = plain(event, &self.rate);
                    match bar {
                        Some(bar) => bar.println(line),
                        None => out::note(&line),
                    }
                }
            },
        }
    }

    /// Says one line above the bar.
    pub fn note(&self, text: &str) {
        match &self.mode {
            Mode::Quiet => {}
            Mode::Bar { bar: Some(bar) } => bar.println(text),
            _ => out::note(text),
        }
    }

    /// Takes the bar away.
    pub fn finish(&mut self) {
        if let Mode::Bar { bar } = &mut self.mode
            && let Some(bar) = bar.take()
        {
            bar.abandon();
        }
    }
}

/// A bar on standard error.
pub(crate) fn new_bar(length: u64, template: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr_with_hz(10));
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

/// Tokens and time so far; evaluations do not count.
#[derive(Debug, Default)]
struct Rate {
    tokens: usize,
    seconds: f64,
    steps: usize,
}

impl Rate {
    fn take(&mut self, event: &Event) {
        if let Event::Step { tokens, seconds, .. } = event {
            self.tokens += tokens;
            self.seconds += seconds;
            self.steps += 1;
        }
    }

    fn tokens_per_second(&self) -> usize {
        if self.seconds > 0.0 { (self.tokens as f64 / self.seconds) as usize } else { 0 }
    }

    fn eta(&self, steps_left: usize) -> Duration {
        let per_step = self.seconds / self.steps.max(1) as f64;
        Duration::try_from_secs_f64(per_step * steps_left as f64).unwrap_or_default()
    }
}

/// Whether a plain line is due: always, except for a step soon after another. The first and the last step always.
fn is_due(event: &Event, last: Option<Instant>, now: Instant) -> bool {
    let Event::Step { step, total_steps, .. } = event else { return true };
    step == total_steps || last.is_none_or(|last| now.duration_since(last) >= PLAIN_INTERVAL)
}

/// An event as a line of text.
fn plain(event: &Event, rate: &Rate) -> String {
    match event {
        Event::Plan {
            train_examples,
            validation_examples,
            total_steps,
            epochs,
            trainable_parameters,
            trained_tokens_per_epoch,
            ..
        } => format!(
            "{} training rows ({} trained tokens), {} held out; {epochs} {}, {} steps; {} trainable parameters",
            thousands(*train_examples),
            thousands(*trained_tokens_per_epoch),
            thousands(*validation_examples),
            if *epochs == 1 { "epoch" } else { "epochs" },
            thousands(*total_steps),
            thousands(*trainable_parameters),
        ),
        Event::Step { step, total_steps, epoch, loss, learning_rate, .. } => format!(
            "step {step}/{total_steps}  epoch {epoch:.2}  loss {loss:.4}  lr {learning_rate:.2e}  {} tokens/s  eta {}",
            thousands(rate.tokens_per_second()),
            clock(rate.eta(total_steps.saturating_sub(*step))),
        ),
        Event::Evaluation { step, epoch, loss, .. } => {
            format!("evaluation after step {step}  epoch {epoch:.2}  loss {loss:.4}")
        }
        Event::Resumed { step } => format!("going on after step {step}"),
        Event::Stopped { reason, .. } => format!("training has ended: {reason}"),
        Event::Warning { message } => format!("warning: {message}"),
    }
}

/// A duration as `1:02:03` or `2:03`.
pub(crate) fn clock(time: Duration) -> String {
    let seconds = time.as_secs_f64().round() as u64;
    let (h, m, s) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if h > 0 { format!("{h}:{m:02}:{s:02}") } else { format!("{m}:{s:02}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: usize) -> Event {
        Event::Step {
            step,
            total_steps: 90,
            epoch: 0.4,
            loss: 2.103_44,
            learning_rate: 1.9e-4,
            grad_norm: 0.5,
            tokens: 1000,
            trained_tokens: 100,
            seconds: 0.25,
        }
    }

    #[test]
    fn plain_lines_about_steps_keep_their_distance() {
        let start = Instant::now();
        let soon = start + Duration::from_millis(999);
        assert!(is_due(&step(1), None, start));
        assert!(!is_due(&step(2), Some(start), soon));
        assert!(is_due(&step(2), Some(start), start + PLAIN_INTERVAL));
        assert!(is_due(&step(90), Some(start), soon), "the last step is always said");
        let evaluation =
            Event::Evaluation { step: 1, epoch: 0.1, loss: 1.0, trained_tokens: 1, seconds: 0.1 };
        assert!(is_due(&evaluation, Some(start), soon));
    }

    #[test]
    fn a_step_line_has_loss_rate_and_time_left() {
        let mut rate = Rate::default();
        rate.take(&step(1));
        rate.take(&step(2));
        assert_eq!(
            plain(&step(2), &rate),
            "step 2/90  epoch 0.40  loss 2.1034  lr 1.90e-4  4,000 tokens/s  eta 0:22"
        );
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!(
            ["0", "999", "1,000", "1,234,567"],
            [0, 999, 1000, 1_234_567].map(thousands).each_ref().map(String::as_str)
        );
        assert_eq!(clock(Duration::from_secs(3723)), "1:02:03");
        assert_eq!(clock(Duration::from_secs(59)), "0:59");
    }
}
