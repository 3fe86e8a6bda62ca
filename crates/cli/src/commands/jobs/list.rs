//! `tunesmith show`.

use std::io::IsTerminal as _;

use tunesmith_jobs::State;
use tunesmith_jobs::store::{Filter, Summary};

use super::view::{Line, fraction, phase, words};
use super::{grid, moment, open};
use crate::args::ListArgs;
use crate::error::CliError;
use crate::out;
use crate::progress::thousands;

/// Lists jobs.
pub(crate) fn run(args: &ListArgs) -> Result<(), CliError> {
    let store = open()?;
    let states: Vec<State> = args.status.iter().flat_map(|status| status.states()).copied().collect();
    // One more than are shown tells whether there are more.
    let limit = (!args.all).then(|| args.limit.saturating_add(1));
    let mut jobs = store.summaries(Filter { states: &states, limit })?;
    let more = !args.all && jobs.len() > args.limit;
    if more {
        jobs.truncate(args.limit);
    }
    if args.json {
        return out::json(&jobs.iter().map(Line::from).collect::<Vec<_>>());
    }
    if jobs.is_empty() {
        let none = if states.is_empty() {
            "no jobs yet; `tunesmith create` makes one"
        } else {
            "no job of this status"
        };
        out::note(none);
        return Ok(());
    }
    let header = ["id", "status", "name", "progress", "base", "created (UTC)", "device or reason"];
    let rows: Vec<Vec<String>> = jobs.iter().map(row).collect();
    // A program that reads the table is not helped by cells that are cut.
    let width = if std::io::stdout().is_terminal() { grid::width() } else { usize::MAX / 2 };
    out::print(&grid::table_with(&header.map(str::to_owned), &rows, width, 2))?;
    if more {
        let jobs = if args.limit == 1 { "job is".to_owned() } else { format!("{} jobs are", args.limit) };
        out::note(&format!("note: only the newest {jobs} shown; --all gives all"));
    }
    Ok(())
}

fn row(job: &Summary) -> Vec<String> {
    let base = job.base_model.rsplit('/').find(|part| !part.is_empty()).unwrap_or(&job.base_model);
    vec![
        job.id.clone(),
        words(job.state, phase(job.state, job.desired, job.phase.as_deref())),
        grid::plain(&job.name),
        steps(job),
        grid::plain(base),
        moment(job.created_ms).get(..16).unwrap_or_default().to_owned(),
        grid::plain(job.device.as_deref().or(job.reason.as_deref()).unwrap_or_default()),
    ]
}

fn steps(job: &Summary) -> String {
    if job.total_steps == 0 {
        return String::new();
    }
    let percent = 100.0 * fraction(job.state, job.fraction());
    format!("{}/{} {percent:.0}%", thousands(job.step as usize), thousands(job.total_steps as usize))
}
