//! `tunesmith show`.

use std::io::IsTerminal as _;
use std::time::UNIX_EPOCH;

use tunesmith_jobs::State;
use tunesmith_jobs::dir as jobdir;
use tunesmith_jobs::store::{Filter, Summary};

use super::view::{Line, fraction, phase, words};
use super::{grid, open};
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
    let header = ["id", "status", "name", "progress", "base", "created", "device or reason"];
    let now = now();
    let rows: Vec<Vec<String>> = jobs.iter().map(|job| row(job, now)).collect();
    // A program that reads the table is not helped by cells that are cut.
    let width = if std::io::stdout().is_terminal() { grid::width() } else { usize::MAX / 2 };
    out::print(&grid::table_with(&header.map(str::to_owned), &rows, width, 2))?;
    if more {
        let jobs = if args.limit == 1 { "job is".to_owned() } else { format!("{} jobs are", args.limit) };
        out::note(&format!("note: only the newest {jobs} shown; --all gives all"));
    }
    Ok(())
}

fn row(job: &Summary, now: i64) -> Vec<String> {
    let base = job.base_model.rsplit('/').find(|part| !part.is_empty()).unwrap_or(&job.base_model);
    vec![
        job.id.clone(),
        words(job.state, phase(job.state, job.desired, job.phase.as_deref())),
        grid::plain(&job.name),
        steps(job),
        grid::plain(base),
        ago(now, job.created_ms),
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

/// Milliseconds since 1970.
fn now() -> i64 {
    jobdir::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

/// How long ago a moment was: short, as a list has little room and `describe` has the moment itself.
fn ago(now: i64, then: i64) -> String {
    let seconds = (now - then).max(0) / 1000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (seconds, minutes, hours) {
        (..60, ..) => format!("{seconds} s ago"),
        (_, ..60, _) => format!("{minutes} min ago"),
        (_, _, ..48) => format!("{hours} h ago"),
        _ => format!("{days} d ago"),
    }
}

#[cfg(test)]
mod tests {
    use super::ago;

    #[test]
    fn ages_are_short() {
        for (seconds, text) in [
            (-5, "0 s ago"),
            (59, "59 s ago"),
            (60, "1 min ago"),
            (3599, "59 min ago"),
            (3600, "1 h ago"),
            (172_799, "47 h ago"),
            (172_800, "2 d ago"),
        ] {
            assert_eq!(ago(1_000_000_000, 1_000_000_000 - 1000 * seconds), text);
        }
    }
}
