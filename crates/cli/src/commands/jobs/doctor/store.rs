//! The store itself.

use std::path::Path;

use tunesmith_jobs::store::{Filter, Summary};
use tunesmith_jobs::{Error, State, Store, dir, supervisor};

use super::Findings;

const REBUILD: &str =
    "`tunesmith doctor --rebuild` puts it aside and makes a new one from the job directories";

/// Checks the store; its jobs, when it can be read.
pub(super) fn check(home: &Path, findings: &mut Findings) -> Option<Vec<Summary>> {
    let path = home.join("jobs.sqlite");
    if path.symlink_metadata().is_err() {
        if home.join("jobs").read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
            let message = format!("there are job directories, but no store `{}`", path.display());
            findings.add("no_store", None, message, "`tunesmith doctor --rebuild` makes it from them");
            return None;
        }
        return Some(Vec::new());
    }
    let read = || -> Result<(Vec<String>, Vec<Summary>), Error> {
        let store = Store::open(home)?;
        Ok((store.problems()?, store.summaries(Filter::default())?))
    };
    match read() {
        Ok((problems, jobs)) => {
            for problem in problems {
                let message = format!("the store `{}` is damaged: {problem}", path.display());
                findings.add("store_damaged", None, message, REBUILD);
            }
            at_work(home, &jobs, findings);
            Some(jobs)
        }
        Err(error @ Error::Newer { .. }) => {
            findings.add("store_newer", None, error.to_string(), "use the newer version of tunesmith");
            None
        }
        Err(error) => {
            findings.add("store_damaged", None, error.to_string(), REBUILD);
            None
        }
    }
}

/// Jobs that say they are at work while nobody is.
fn at_work(home: &Path, jobs: &[Summary], findings: &mut Findings) {
    if !matches!(supervisor::running(home), Ok(None)) {
        return;
    }
    let fix = "`tunesmith show` starts a supervisor, which takes it up";
    for job in jobs {
        let dir = home.join("jobs").join(&job.id);
        let busy = || dir.is_dir() && !dir::is_free(&dir).unwrap_or(true);
        match job.state {
            State::Running if !busy() => {
                let message = format!("job {} is said to run, but no process has it", job.id);
                findings.add("not_at_work", Some(&job.id), message, fix);
            }
            State::Validating | State::Queued if !busy() => {
                let message = format!("job {} waits, and nobody looks after the jobs", job.id);
                findings.add("no_supervisor", Some(&job.id), message, fix);
            }
            _ => {}
        }
    }
}
