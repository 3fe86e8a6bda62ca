//! `tunesmith worker`: one stage of a job, in a process of its own. It knows nothing but the job's directory, and
//! speaks through its files and its exit code.

use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use serde_json::Value;
use tunesmith_jobs::dir::{
    Attempt, AttemptFailure, JobDir, JobResult, SpecFile, Status, WorkerIdentity, rfc3339_millis, rfc3339_now,
};
use tunesmith_jobs::failpoint;
use tunesmith_train::checkpoint;

use crate::args::{Stage, WorkerArgs};
use crate::commands::deliver::deliver;
use crate::commands::train::{contained, failure};
use crate::commands::watch::watched;
use crate::engine::{self, Run, Stop};
use crate::error::{CliError, GO_ON, class_exit_code};
use crate::spec::JobSpec;
use crate::{interrupt, out};

/// Runs a stage of a job.
pub(crate) fn run(args: &WorkerArgs) -> ExitCode {
    // A group of its own, whatever becomes of the terminal. One that leads a group already may not, and need not.
    #[cfg(unix)]
    let _ = rustix::process::setsid();
    let worked = std::path::absolute(&args.dir)
        .map_err(|source| CliError::Io { action: "find", path: args.dir.clone(), source })
        .and_then(|dir| stage(&dir, args.stage));
    ExitCode::from(worked.unwrap_or_else(|error| {
        out::error(&error);
        error.exit_code()
    }))
}

fn stage(dir: &Path, stage: Stage) -> Result<u8, CliError> {
    // Before the lock: what is over is not touched.
    if let Some(code) = ended(dir)? {
        return Ok(code);
    }
    let job = JobDir::open(dir)?;
    failpoint::hit("worker:after_lock");
    if let Some(code) = ended(dir)? {
        return Ok(code);
    }
    sweep(dir)?;
    let attempt = Attempt::read(dir)?;
    let fence = attempt.as_ref().map_or(0, |attempt| attempt.fence);
    WorkerIdentity::own(fence).write(dir)?;
    let stopping = "stopping at a checkpoint; another signal stops at once";
    let stop = interrupt::install_stop(stopping, Stop::Pause, GO_ON)?;

    let mut result = JobResult::new(job.id(), "", Status::Error, job.path().into());
    result.fence = fence;
    result.attempt = attempt.as_ref().map_or(0, |attempt| attempt.attempt);
    result.started_at = started_at(dir).unwrap_or_else(rfc3339_now);
    let spec = match spec(dir) {
        Ok(spec) => spec,
        Err(error) => return conclude(&job, result, Err(error)),
    };
    result.name = spec.name.clone().unwrap_or_default();
    let mut run = Run::new(&spec, &job, &stop, false, result);
    if let Some(attempt) = attempt {
        run.device = attempt.device;
        run.micro_batch_divisor = attempt.micro_batch_divisor.max(1) as usize;
    }
    let pulse = run.progress.pulse();
    let outcome = watched(dir, &stop, &pulse, || contained(|| work(&mut run, stage)));
    run.progress.finish();
    match (outcome, stage) {
        (Ok(()), Stage::Prepare) => Ok(0),
        (outcome, _) => conclude(&job, run.result, outcome),
    }
}

fn work(run: &mut Run<'_>, stage: Stage) -> Result<(), CliError> {
    CliError::check(run.stop)?;
    match stage {
        Stage::Prepare if run.job.read_manifest::<Value>()?.is_some() => Ok(()),
        Stage::Prepare => engine::prepare(run).map(drop),
        Stage::Train => {
            if run.device == "auto" {
                // Nobody chose a device: a stage that is run by hand.
                run.device = engine::resolve_device("auto", false)?;
            } else if run.spec.device == "auto" {
                // A job of an earlier version, whose device the supervisor chose.
                engine::trust_device(&run.device, false)?;
            }
            let ready = engine::thaw(run)?;
            engine::train(run, &ready)?;
            run.result.adapter = Some(run.job.adapter());
            run.result.adapter = Some(deliver(run.spec, run.job)?);
            Ok(())
        }
    }
}

/// Leaves `result.json` where the job is over, `failure.json` where somebody else decides whether it is; returns the
/// exit code.
fn conclude(job: &JobDir, mut result: JobResult, outcome: Result<(), CliError>) -> Result<u8, CliError> {
    let code = outcome.as_ref().err().map_or(0, CliError::exit_code);
    match outcome {
        Ok(()) => result.status = Status::Success,
        Err(CliError::Cancelled) => result.status = Status::Cancelled,
        Err(CliError::Paused) => return Ok(code),
        Err(error) => {
            out::error(&error);
            let failed = failure(&error);
            if matches!(error.class(), "memory" | "device" | "io") {
                AttemptFailure { fence: result.fence, error: failed }.write(job.path())?;
                return Ok(code);
            }
            result.status = Status::Error;
            result.error = Some(failed);
        }
    }
    result.finished_at = rfc3339_now();
    let times = (rfc3339_millis(&result.started_at), rfc3339_millis(&result.finished_at));
    if let (Some(started), Some(finished)) = times {
        result.seconds = (finished - started).max(0) as f64 / 1000.0;
    }
    failpoint::hit("worker:before_result");
    if let Err(error) = job.write_result(&result).map_err(CliError::from) {
        // With luck there is room for this smaller file.
        let _ = AttemptFailure { fence: result.fence, error: failure(&error) }.write(job.path());
        return Err(error);
    }
    failpoint::hit("worker:after_result");
    Ok(code)
}

/// The exit code of a job that is over. A result of an earlier attempt is not believed, and set aside.
fn ended(dir: &Path) -> Result<Option<u8>, CliError> {
    let path = dir.join("result.json");
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(CliError::Io { action: "read", path, source }),
    };
    let result: JobResult = serde_json::from_slice(&text)
        .map_err(|e| CliError::Internal(format!("`{}` is damaged: {e}", path.display())))?;
    if Attempt::read(dir)?.is_some_and(|attempt| attempt.fence != result.fence) {
        let aside = dir.join(format!("result.json.of-{}", result.fence));
        fs::rename(&path, &aside).map_err(|source| CliError::Io { action: "rename", path, source })?;
        return Ok(None);
    }
    Ok(Some(match result.status {
        Status::Success => 0,
        Status::Cancelled => 130,
        Status::Error => {
            let class = result.error.as_ref().map(|error| error.class.as_str());
            class_exit_code(class.unwrap_or("data"))
        }
    }))
}

/// The job's spec, if this version understands all of it.
fn spec(dir: &Path) -> Result<JobSpec, CliError> {
    let refused = |message: String| CliError::Input { code: "invalid_config", message, hint: None };
    let file = SpecFile::read(dir).map_err(|e| match e {
        tunesmith_jobs::Error::Newer { .. } | tunesmith_jobs::Error::Corrupt { .. } => refused(e.to_string()),
        other => other.into(),
    })?;
    serde_json::from_value(file.spec).map_err(|e| {
        let (path, writer) = (dir.join("spec.json"), file.tunesmith_version);
        refused(format!("`{}`, written by tunesmith {writer}, cannot be understood: {e}", path.display()))
    })
}

/// Removes what a worker that died left unfinished, and what an earlier attempt failed with.
fn sweep(dir: &Path) -> Result<(), CliError> {
    checkpoint::sweep(dir)?;
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| CliError::Io { action: "remove", path, source }
    };
    for name in ["adapter.tmp", "adapter.old.tmp"] {
        match fs::remove_dir_all(dir.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(&dir.join(name))(e)),
            _ => {}
        }
    }
    // Not those that others write: control and attempt.
    let files =
        ["failure.json", "failure.json.tmp", "result.json.tmp", "worker.json.tmp", "previews.json.tmp"];
    for name in files {
        match fs::remove_file(dir.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(&dir.join(name))(e)),
            _ => {}
        }
    }
    Ok(())
}

/// When the first attempt began to train, as the events tell.
fn started_at(dir: &Path) -> Option<String> {
    let text = fs::read_to_string(dir.join("events.jsonl")).ok()?;
    let line = text.lines().find(|line| line.contains("\"phase\":\"loading\""))?;
    let event: Value = serde_json::from_str(line).ok()?;
    event["time"].as_str().map(str::to_owned)
}
