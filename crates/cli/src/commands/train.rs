//! `tunesmith train`: a job from its file to its adapter, in the foreground.

use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Instant;

use crate::args::TrainArgs;
use crate::commands::deliver::{deliver, refuse_existing};
use crate::commands::jobs::Booking;
use crate::commands::watch::watched;
use crate::commands::{generate::missing, load, serve};
use crate::energy::watt_hours;
use crate::engine::{self, Run, Stop};
use crate::error::CliError;
use crate::progress::thousands;
use crate::quote::price;
use crate::spec::JobSpec;
use crate::{interrupt, out};
use tunesmith_jobs::dir::{self as jobdir, Failure, JobDir, JobResult, Status, rfc3339_now};

/// What is left to do for the caller after a run that failed: nothing, or the JSON object too.
#[derive(Debug)]
pub(crate) struct Failed {
    /// Why.
    pub(crate) error: CliError,
    /// Whether the JSON object that `--json` promises is printed already.
    pub(crate) reported: bool,
}

impl From<CliError> for Failed {
    fn from(error: CliError) -> Self {
        Self { error, reported: false }
    }
}

/// Runs a job. Its directory holds spec, events and, whatever happens, a result.
pub(crate) fn run(args: &TrainArgs) -> Result<(), Failed> {
    let mut spec = load(&args.job, &args.overrides)?.spec;
    preflight(&spec)?;
    // The job's spec, row and lease name the device that it runs on.
    spec.device = engine::resolve_device(&spec.device, args.quiet)?;
    let resolved = serde_json::to_value(&spec).map_err(|e| CliError::Internal(e.to_string()))?;
    let home = jobdir::home().map_err(CliError::from)?;
    let mut booking = Booking::open(&home)?;
    let job = JobDir::create(&home).map_err(CliError::from)?;
    let stopping = "stopping; press Ctrl-C again to stop at once";
    let stop = interrupt::install_stop(stopping, Stop::Cancel, 130)?;
    let started = Instant::now();
    let mut result =
        JobResult::new(job.id(), spec.name.as_deref().unwrap_or_default(), Status::Error, job.path().into());
    result.started_at = rfc3339_now();

    let mut run = Run::new(&spec, &job, &stop, args.quiet, result);
    let pulse = run.progress.pulse();
    let work = || {
        job.write_spec(&resolved)?;
        booking.enter(&job, &resolved, &stop)?;
        run.result.fence = booking.fence();
        let ready = engine::prepare(&mut run)?;
        if let Some(started) = booking.take(&job, &spec.device, &stop, args.quiet)? {
            (run.result.fence, run.result.attempt) = (started.fence, started.attempt);
        }
        engine::train(&mut run, &ready)?;
        run.result.adapter = Some(job.adapter());
        run.result.adapter = Some(deliver(&spec, &job)?);
        Ok(())
    };
    let outcome = watched(job.path(), &stop, &pulse, || contained(work));
    run.progress.finish();
    if matches!(outcome, Err(CliError::Paused)) {
        return Err(paused(&mut booking, job, &home));
    }
    let mut result = run.result;
    result.finished_at = rfc3339_now();
    result.seconds = started.elapsed().as_secs_f64();
    // Every token of the steps that were taken, as a quote counts them.
    result.price_per_million = args.price_per_million;
    result.price = args.price_per_million.map(|per_million| price(result.tokens, per_million));
    result.status = match &outcome {
        Ok(()) => Status::Success,
        Err(CliError::Cancelled) => Status::Cancelled,
        Err(_) => Status::Error,
    };
    result.error = outcome.as_ref().err().filter(|e| !matches!(e, CliError::Cancelled)).map(failure);
    let written = job.write_result(&result).map_err(CliError::from);
    let outcome = match (outcome, written) {
        (Err(first), Err(second)) => {
            out::note(&format!("note: the result could not be written either: {second}"));
            Err(first)
        }
        (outcome, written) => outcome.and(written),
    };
    booking.end(&job, &result);

    if let (true, Some(before), Some(after)) =
        (outcome.is_ok(), result.initial_validation_loss, result.validation_loss)
        && after > before
    {
        out::note(&format!(
            "warning: the held-out loss went up, from {before:.4} to {after:.4}: the adapter makes the model worse on \
             these rows; try a lower `train.learning_rate`"
        ));
    }
    // What the program says must agree with its exit code, also when only the result file failed.
    if let Err(error) = &outcome
        && result.status == Status::Success
    {
        result.status = Status::Error;
        result.error = Some(failure(error));
    }
    if args.json {
        out::json(&result)?;
    } else if outcome.is_ok() {
        report(&result)?;
    }
    outcome.map_err(|error| {
        if !args.quiet {
            out::note(&format!("job: {}", job.path().display()));
        }
        Failed { error, reported: args.json }
    })
}

/// The job stopped at a checkpoint, as somebody asked for from elsewhere, and goes on without this terminal.
fn paused(booking: &mut Booking, job: JobDir, home: &Path) -> Failed {
    let id = job.id().to_owned();
    let left = booking.pause();
    // Whoever goes on with it must find its lock free, and not before the store knows.
    drop(job);
    if let Err(error) = left.and_then(|()| serve::ensure(home)) {
        return error.into();
    }
    out::note(&format!("job {id} is to pause; `tunesmith resume {id}` lets it go on, without this terminal"));
    CliError::Paused.into()
}

/// Runs the work; a panic in it becomes an error, so that the job still gets its result.
pub(super) fn contained(work: impl FnOnce() -> Result<(), CliError>) -> Result<(), CliError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(CliError::from_panic(panic.as_ref())))
}

/// An error as a job's files have it.
pub(super) fn failure(error: &CliError) -> Failure {
    Failure {
        class: error.class().to_owned(),
        code: error.code().to_owned(),
        message: error.message(),
        hint: error.hint(),
    }
}

/// What can be known to fail before a job is made.
pub(super) fn preflight(spec: &JobSpec) -> Result<(), CliError> {
    engine::check_device(&spec.device)?;
    let sources =
        [("training data", Some(&spec.data.train)), ("validation data", spec.data.validation.as_ref())];
    for (what, uri) in sources {
        let Some(path) = uri.filter(|uri| engine::is_plain_path(uri)).map(Path::new) else { continue };
        match fs::metadata(path) {
            Ok(_) => {}
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Err(with_hint(
                    missing(what, path),
                    "relative paths are taken from the current directory",
                ));
            }
            Err(source) => return Err(CliError::Io { action: "read", path: path.to_owned(), source }),
        }
    }
    check_output(spec)
}

/// [`preflight`] of a job that is made again: rows that are frozen need no source.
pub(super) fn preflight_again(spec: &JobSpec, reads: bool) -> Result<(), CliError> {
    if reads {
        return preflight(spec);
    }
    engine::check_device(&spec.device)?;
    check_output(spec)
}

fn check_output(spec: &JobSpec) -> Result<(), CliError> {
    if let Some(output) = &spec.output {
        refuse_existing(output)?;
        if let Some(parent) = output.parent() {
            let path = parent.to_owned();
            fs::create_dir_all(parent).map_err(|source| CliError::Io { action: "create", path, source })?;
        }
    }
    Ok(())
}

fn with_hint(error: CliError, hint: &str) -> CliError {
    match error {
        CliError::Input { code, message, .. } => {
            CliError::Input { code, message, hint: Some(hint.to_owned()) }
        }
        other => other,
    }
}

/// What a person sees at the end.
pub(super) fn report(result: &JobResult) -> Result<(), CliError> {
    for preview in &result.previews {
        out::line(&format!("held-out row {}: {}", preview.line, indent(&preview.prompt)))?;
        out::line(&format!("  expected: {}", indent(&preview.expected)))?;
        out::line(&format!("  before:   {}", indent(&preview.before)))?;
        out::line(&format!("  after:    {}\n", indent(preview.after.as_deref().unwrap_or_default())))?;
    }
    if let (Some(before), Some(after)) = (result.initial_validation_loss, result.validation_loss) {
        out::line(&format!("validation loss: {before:.4} before, {after:.4} after"))?;
    }
    if let (Some(price), Some(per_million)) = (result.price, result.price_per_million) {
        let tokens = thousands(result.tokens);
        out::line(&format!("price: {price:.4} for {tokens} tokens ({per_million} a million)"))?;
    }
    if let Some(joules) = result.joules {
        let energy = watt_hours(joules, &result.joules_of, result.joules_unknown.as_deref());
        out::line(&format!("energy: {energy}"))?;
    }
    match &result.adapter {
        Some(path) => out::line(&format!("adapter: {}", path.display())),
        None => Ok(()),
    }
}

/// Later lines of a text set under its first.
fn indent(text: &str) -> String {
    text.trim().replace('\n', "\n            ")
}
