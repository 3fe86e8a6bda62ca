//! `tunesmith doctor`.

mod dirs;
mod store;

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;
use tunesmith_jobs::dir as jobdir;
use tunesmith_jobs::{Store, supervisor};

use super::grid;
use crate::args::DoctorArgs;
use crate::commands::quote::bytes;
use crate::error::{BAD_DATA, CliError};
use crate::out;

/// Jobs whose room on the disk is shown.
const LARGEST: usize = 5;

/// One thing that is wrong.
#[derive(Debug, Serialize)]
struct Finding {
    /// For programs.
    code: &'static str,
    /// The job, where it is about one.
    job: Option<String>,
    /// What, in a sentence.
    message: String,
    /// What to do.
    fix: String,
}

/// What was looked at, and what was found.
#[derive(Debug, Serialize)]
struct Report {
    status: &'static str,
    home: std::path::PathBuf,
    /// Rows of the store; absent when it cannot be read.
    jobs: Option<usize>,
    /// The process that looks after the jobs.
    supervisor: Option<u32>,
    findings: Vec<Finding>,
    /// Bytes of every job's directory, the largest first.
    disk: Vec<Room>,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct Room {
    id: String,
    bytes: u64,
}

/// Collects what is wrong.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, code: &'static str, job: Option<&str>, message: String, fix: impl Into<String>) {
        self.0.push(Finding { code, job: job.map(str::to_owned), message, fix: fix.into() });
    }
}

/// Checks the store and every job directory, or makes the store again.
pub(crate) fn run(args: &DoctorArgs) -> Result<ExitCode, CliError> {
    let home = jobdir::home()?;
    if args.rebuild {
        return rebuild(&home, args.json);
    }
    let mut findings = Findings::default();
    let jobs = store::check(&home, &mut findings);
    let mut disk = dirs::check(&home, jobs.as_deref(), &mut findings)?;
    disk.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.id.cmp(&b.id)));
    let Findings(findings) = findings;
    let report = Report {
        status: if findings.is_empty() { "ok" } else { "error" },
        jobs: jobs.map(|jobs| jobs.len()),
        supervisor: supervisor::running(&home)?,
        bytes: disk.iter().map(|room| room.bytes).sum(),
        home,
        findings,
        disk,
    };
    if args.json {
        out::json(&report)?;
    } else {
        out::print(&text(&report))?;
    }
    Ok(if report.findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(BAD_DATA) })
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    let mut say = |what: &str, value: String| {
        // Writing to a string cannot fail, here and below.
        let _ = writeln!(text, "{what:<13}{value}");
    };
    say("workspace", report.home.display().to_string());
    say("jobs", report.jobs.map_or("unknown".to_owned(), |jobs| jobs.to_string()));
    let supervisor = report.supervisor.map_or("none is running".to_owned(), |pid| format!("process {pid}"));
    say("supervisor", supervisor);
    say("disk", format!("{} in {} directories of jobs", bytes(report.bytes), report.disk.len()));
    for room in report.disk.iter().take(LARGEST) {
        say("", format!("{}  {}", room.id, bytes(room.bytes)));
    }
    for finding in &report.findings {
        let _ = writeln!(text, "\n{} [{}]", grid::escape(&finding.message), finding.code);
        let _ = writeln!(text, "  {}", grid::escape(&finding.fix));
    }
    let _ = match report.findings.len() {
        0 => writeln!(text, "\nnothing is wrong"),
        1 => writeln!(text, "\n1 finding"),
        many => writeln!(text, "\n{many} findings"),
    };
    text
}

/// What `--rebuild` did.
#[derive(Debug, Serialize)]
struct Rebuilt {
    status: &'static str,
    jobs: usize,
    old: Option<std::path::PathBuf>,
    left_out: Vec<String>,
}

fn rebuild(home: &Path, json: bool) -> Result<ExitCode, CliError> {
    if let Some(pid) = supervisor::running(home)? {
        return Err(CliError::Input {
            code: "supervised",
            message: format!(
                "process {pid} looks after the jobs, and the store cannot be made again under it"
            ),
            hint: Some(format!("stop it first (`kill {pid}`): the jobs that run go on without it")),
        });
    }
    let (_, rebuilt) = Store::rebuild(home)?;
    let report = Rebuilt { status: "ok", jobs: rebuilt.jobs, old: rebuilt.old, left_out: rebuilt.left_out };
    if json {
        out::json(&report)?;
        return Ok(ExitCode::SUCCESS);
    }
    let jobs = if report.jobs == 1 { "1 job".to_owned() } else { format!("{} jobs", report.jobs) };
    out::line(&format!("the store was made again from the directories: {jobs}"))?;
    if let Some(old) = &report.old {
        out::line(&format!("the old one is `{}`; remove it when nothing is missing", old.display()))?;
    }
    for left in &report.left_out {
        out::note(&format!("note: left out: {}", grid::escape(left)));
    }
    Ok(ExitCode::SUCCESS)
}
