//! `tunesmith create`.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::{Value, json};
use tunesmith_data::Format;
use tunesmith_jobs::dir::{self as jobdir, JobDir, Submission, sync_dir};
use tunesmith_jobs::{Error as JobError, Store, submit_with};

use super::view::View;
use super::{supervise, watch};
use crate::args::CreateArgs;
use crate::commands::quote::count_rows;
use crate::commands::{confirm, has_terminal, load_over, train};
use crate::error::CliError;
use crate::progress::thousands;
use crate::quote::Quote;
use crate::spec::{Assignment, JobSpec};
use crate::{engine, interrupt, out};

/// Makes a job, and follows it.
pub(crate) fn run(args: &CreateArgs) -> Result<ExitCode, CliError> {
    let mut spec = spec(args)?;
    train::preflight(&spec)?;
    // The job's spec, row and lease name the device that it runs on.
    spec.device = engine::resolve_device(&spec.device, args.json)?;
    let piped = from_stdin(&spec)?;
    if !args.yes && !args.json && piped.is_none() && has_terminal() && !agreed(&spec)? {
        out::note("no job was made");
        return Ok(ExitCode::SUCCESS);
    }
    let home = jobdir::home()?;
    let mut store = Store::open(&home)?;
    let submission = Submission {
        priority: args.priority,
        idempotency_key: args.idempotency_key.clone(),
        retried_from: None,
        on_finish: args.on_finish.clone(),
    };
    let resolved = serde_json::to_value(&spec).map_err(|e| CliError::Internal(e.to_string()))?;
    let made = submit_with(&mut store, &submission, |dir| match piped {
        Some(key) => keep_stdin(dir, resolved, key, spec.data.format),
        None => Ok(resolved),
    })?;
    let new = made.dir.is_some();
    // Whoever is to work on the job must find its lock free.
    drop(made.dir);
    let job = made.job;
    supervise(&home)?;
    if args.json {
        out::json(&View::new(&store, &job)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    out::line(&job.id)?;
    if !new {
        out::note("the job of this key is there already; no other was made");
    } else if let Some(key) = piped {
        let path = if key == TRAIN { Some(&job.training_data) } else { job.validation_data.as_ref() };
        let path = path.map(String::as_str).unwrap_or_default();
        out::note(&format!("standard input was copied into the job, `{path}`: another process reads it"));
    }
    if args.detach { Ok(ExitCode::SUCCESS) } else { watch::run(&mut store, &job.id, 0, false) }
}

/// Where the spec says what is trained on and what is held out.
const TRAIN: &str = "/data/train";
const VALIDATION: &str = "/data/validation";

fn spec(args: &CreateArgs) -> Result<JobSpec, CliError> {
    let mut flags = vec![Assignment { key: "name", flag: "NAME", value: json!(args.name) }];
    for (key, flag, value) in [
        ("base", "--base", &args.base),
        ("data.train", "--training-data", &args.training_data),
        ("data.validation", "--validation-data", &args.validation_data),
    ] {
        if let Some(value) = value {
            flags.push(Assignment { key, flag, value: json!(value) });
        }
    }
    Ok(load_over(args.config.as_deref(), &args.overrides, flags)?.spec)
}

/// Which rows come from standard input.
fn from_stdin(spec: &JobSpec) -> Result<Option<&'static str>, CliError> {
    match (spec.data.train == "-", spec.data.validation.as_deref() == Some("-")) {
        (true, true) => Err(CliError::Usage {
            message: "standard input cannot be both training and validation data".to_owned(),
            hint: Some(
                "leave --validation-data out: a share of the training rows is held out then".to_owned(),
            ),
        }),
        (true, false) => Ok(Some(TRAIN)),
        (false, true) => Ok(Some(VALIDATION)),
        (false, false) => Ok(None),
    }
}

/// Says what the job will take, and asks.
fn agreed(spec: &JobSpec) -> Result<bool, CliError> {
    let cancel = interrupt::install_stop("stopping", engine::Stop::Cancel, 130)?;
    let quote = engine::quote(spec, None, &cancel, false)?;
    interrupt::at_once();
    out::note(&short(&quote));
    confirm("start? [y/N]", "start")
}

fn short(quote: &Quote) -> String {
    let (plan, costs) = (&quote.plan, &quote.costs);
    format!(
        "{} to train on, {} held out; {} tokens in {} {}, {} steps",
        count_rows(plan.rows),
        thousands(plan.validation_rows),
        thousands(costs.tokens),
        plan.epochs,
        if plan.epochs == 1 { "epoch" } else { "epochs" },
        thousands(costs.steps),
    )
}

/// Copies standard input into the job's directory and has the spec name the copy.
fn keep_stdin(dir: &JobDir, mut spec: Value, key: &str, format: Option<Format>) -> Result<Value, JobError> {
    let ending = match format {
        Some(Format::Json) => "json",
        Some(Format::Csv) => "csv",
        Some(Format::Tsv) => "tsv",
        Some(Format::Parquet) => "parquet",
        Some(Format::Jsonl | Format::Sql) | None => "jsonl",
    };
    // Not in `data/`, which is made anew where reading the rows did not come to its end.
    let path = dir.path().join(format!("stdin.{ending}"));
    let mut file = File::create(&path).map_err(failed("create", &path))?;
    // Reading and writing fail in different words.
    let stdin = PathBuf::from("standard input");
    let mut input = io::stdin().lock();
    let mut buffer = vec![0; 1 << 16];
    let mut bytes = 0;
    loop {
        let read = match io::Read::read(&mut input, &mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(failed("read", &stdin)(e)),
        };
        io::Write::write_all(&mut file, &buffer[..read]).map_err(failed("write", &path))?;
        bytes += read;
    }
    if bytes == 0 {
        let message = "standard input has no rows".to_owned();
        return Err(JobError::Refused { message, code: "too_few_examples" });
    }
    file.sync_all().map_err(failed("write", &path))?;
    sync_dir(dir.path())?;
    if let Some(slot) = spec.pointer_mut(key) {
        *slot = json!(path.to_string_lossy());
    }
    Ok(spec)
}

/// An I/O error in the words of the jobs crate.
pub(super) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> JobError {
    let path = path.to_owned();
    move |source| JobError::Io { action, path, source }
}
