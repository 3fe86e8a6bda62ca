//! `tunesmith describe`.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use tunesmith_jobs::store::Job;
use tunesmith_jobs::{State, Store};

use super::event::memory_plan;
use super::view::{View, words};
use super::{grid, moment, open, watch};
use crate::args::DescribeArgs;
use crate::commands::quote::bytes;
use crate::error::CliError;
use crate::out;
use crate::progress::{clock, thousands};

/// Warnings that are shown.
const WARNINGS: usize = 5;

/// Says how a job is, or follows it.
pub(crate) fn run(args: &DescribeArgs) -> Result<ExitCode, CliError> {
    let mut store = open()?;
    let job = store.find(&args.which.job)?;
    if args.watch {
        // What was before is what `describe` without --watch is for.
        let after = store.last_event(&job.id)?;
        return watch::run(&mut store, &job.id, after, args.json);
    }
    let view = View::new(&store, &job)?;
    if args.json {
        out::json(&view)?;
    } else {
        out::print(&text(&store, &job, &view)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Aligned lines.
fn text(store: &Store, job: &Job, view: &View) -> Result<String, CliError> {
    let mut lines = Lines::default();
    lines.say("id", &view.id);
    lines.say("name", &view.name);
    lines.say("status", &words(job.state, &view.phase));
    lines.say("progress", &progress(job, view));
    if let Some(position) = view.position {
        lines.say("position", &format!("{position} among the jobs that wait"));
    }
    if view.error.is_none() {
        lines.maybe("reason", view.reason.as_deref());
    }
    if let Some(error) = job.result.as_ref().and_then(|result| result.error.as_ref()) {
        lines.say("error", &format!("{} [{}, {}]", error.message, error.class, error.code));
        lines.maybe("hint", error.hint.as_deref());
    }
    lines.say("base model", &view.base_model);
    lines.say("training data", &view.training_data);
    let held_out =
        if view.validation_data.is_empty() { "a share of the training data" } else { &view.validation_data };
    lines.say("validation data", held_out);
    let device = match &view.device {
        Some(device) if *device != view.device_wanted => format!("{device} ({} wanted)", view.device_wanted),
        _ => view.device_wanted.clone(),
    };
    lines.say("device", &device);
    times(&mut lines, view);
    losses(&mut lines, view);
    if view.tokens > 0 {
        let (all, trained) = (thousands(view.tokens as usize), thousands(view.trained_tokens as usize));
        lines.say("tokens", &format!("{all}, of which {trained} counted in the loss"));
    }
    lines.maybe("memory plan", view.memory_plan.as_ref().map(memory_plan).as_deref());
    let peak = |n: Option<u64>| n.map(|n| format!("{} at the peak", bytes(n)));
    lines.maybe("memory", peak(view.peak_memory_bytes).as_deref());
    lines.maybe("device memory", peak(view.peak_device_memory_bytes).as_deref());
    if let Some(epochs) = view.options.get("epochs") {
        let rule = view.epochs_rule.as_ref().map(|rule| match rule.as_str() {
            Some(words) => format!(": {words}"),
            None => format!(": {rule}"),
        });
        lines.say(
            "epochs",
            &format!(
                "{}{}",
                epochs.as_str().map_or(epochs.to_string(), str::to_owned),
                rule.unwrap_or_default()
            ),
        );
    }
    lines.maybe("stopped", view.stop_reason.as_deref());
    if view.attempts > 1 {
        lines.say("attempts", &view.attempts.to_string());
    }
    if view.micro_batch_divisor > 1 {
        lines.say("micro-batches", &format!("made {} times smaller", view.micro_batch_divisor));
    }
    if view.priority != 0 {
        lines.say("priority", &view.priority.to_string());
    }
    lines.maybe("on finish", view.on_finish.as_deref());
    lines.maybe("retried from", view.retried_from.as_deref());
    for one in &view.checkpoints {
        let mut what = format!("step {}, {}", one.step, bytes(one.bytes));
        if let Some(loss) = one.validation_loss {
            let _ = write!(what, ", validation loss {loss:.4}");
        }
        for (word, so) in [("best", one.best), ("last", one.last)] {
            if so {
                let _ = write!(what, ", {word}");
            }
        }
        lines.say("checkpoint", &what);
    }
    if let Some(model) = &view.model {
        lines.say("adapter", &model.adapter.display().to_string());
    }
    lines.say("job directory", &view.job_dir.display().to_string());
    for change in &view.history {
        let (old, new) = (change.old.as_str(), change.new.as_str());
        let why = change.reason.as_deref().map(|why| format!(": {}", grid::plain(why))).unwrap_or_default();
        lines.say("history", &format!("{}  {old} -> {new}{why}", moment(change.at_ms)));
    }
    let shown = store.events_of(&job.id, "warning", WARNINGS)?;
    if view.warnings > shown.len() as u64 {
        lines.say("warnings", &format!("{}; the last of them:", thousands(view.warnings as usize)));
    }
    for warning in shown {
        lines.maybe("warning", warning.data.get("message").and_then(serde_json::Value::as_str));
    }
    Ok(lines.text)
}

fn progress(job: &Job, view: &View) -> String {
    if view.total_steps == 0 {
        return "no step yet".to_owned();
    }
    let (step, total) = (thousands(view.step as usize), thousands(view.total_steps as usize));
    let mut text = format!("step {step} of {total} ({:.0}%)", 100.0 * view.progress);
    // Writing to a string cannot fail, here and below.
    let _ = write!(text, ", epoch {:.2} of {}", view.epoch, view.epochs);
    let left = view.eta_seconds.and_then(|left| Duration::try_from_secs_f64(left).ok());
    if let Some(left) = left.filter(|_| job.state == State::Running) {
        let _ = write!(text, ", about {} left", clock(left));
    }
    if let Some(speed) = view.tokens_per_second {
        let _ = write!(text, ", {} tokens/s", thousands(speed as usize));
    }
    text
}

fn times(lines: &mut Lines, view: &View) {
    lines.say("created", &format!("{} UTC", moment(view.created_on)));
    lines.maybe("started", view.started_on.map(|at| format!("{} UTC", moment(at))).as_deref());
    if let Some(finished) = view.finished_on {
        let mut text = format!("{} UTC", moment(finished));
        if let Some(started) = view.started_on {
            let took = Duration::from_millis(u64::try_from(finished - started).unwrap_or_default());
            let _ = write!(text, ", {} after the start", clock(took));
        }
        lines.say("finished", &text);
    }
}

fn losses(lines: &mut Lines, view: &View) {
    lines.maybe("training loss", view.train_loss.map(|loss| format!("{loss:.4}")).as_deref());
    let validation = match (view.initial_validation_loss, view.validation_loss) {
        (Some(before), Some(now)) => format!("{before:.4} before the first step, {now:.4} now"),
        (_, Some(now)) => format!("{now:.4}"),
        _ => return,
    };
    lines.say("validation loss", &validation);
}

/// Lines of a name and a value that a terminal only shows.
#[derive(Default)]
struct Lines {
    text: String,
}

impl Lines {
    fn say(&mut self, what: &str, value: &str) {
        let _ = writeln!(self.text, "{what:<17}{}", grid::plain(value));
    }

    fn maybe(&mut self, what: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.say(what, value);
        }
    }
}
