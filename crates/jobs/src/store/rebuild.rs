//! A store made anew from the job directories: they are the truth, the store is its index.

use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::params;

use super::{Store, ingest, now_ms};
use crate::dir::{self, Attempt, Control, JobResult, SpecFile, WorkerIdentity, control};
use crate::submit::new_job;
use crate::{Desired, Error, State};

/// What a rebuild found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rebuilt {
    /// Jobs in the new store.
    pub jobs: usize,
    /// Directories that are no job, each with the reason.
    pub left_out: Vec<String>,
    /// Where the old store is now, if there was one.
    pub old: Option<PathBuf>,
}

/// What a job directory says about its job.
#[derive(Debug)]
struct Facts {
    id: String,
    spec: SpecFile<serde_json::Value>,
    state: State,
    control: Control,
    attempt: Option<Attempt>,
    fence: u64,
    result: Option<JobResult>,
}

impl Store {
    /// Puts the store aside, if there is one, and makes a new one from the job directories. Jobs keep id, spec, events and
    /// end; the times of their transitions are lost. Jobs that were at work are queued again, or running where their
    /// worker lives.
    ///
    /// # Errors
    /// A disk that cannot be read or written. A directory that is no job is left alone and reported.
    pub fn rebuild(home: &Path) -> Result<(Self, Rebuilt), Error> {
        let mut rebuilt = Rebuilt { old: put_aside(home)?, ..Rebuilt::default() };
        let mut store = Self::open(home)?;
        for path in directories(&home.join("jobs"))? {
            match Facts::read(&path) {
                Ok(facts) => {
                    store.insert(&facts, &path)?;
                    rebuilt.jobs += 1;
                }
                Err(error) => rebuilt.left_out.push(format!("`{}`: {error}", path.display())),
            }
        }
        Ok((store, rebuilt))
    }

    fn insert(&mut self, facts: &Facts, path: &Path) -> Result<(), Error> {
        let new = new_job(&facts.id, &facts.spec.spec, &facts.spec.submission);
        let result = facts.result.as_ref().map(serde_json::to_string).transpose();
        let result = result.map_err(|e| Error::Json { path: path.to_owned(), message: e.to_string() })?;
        let error = facts.result.as_ref().and_then(|result| result.error.as_ref());
        let why = error.map(|error| error.message.clone());
        let finished = facts.result.as_ref().and_then(|r| dir::rfc3339_millis(&r.finished_at));
        let events = path.join("events.jsonl");
        let first = if facts.state == State::Validating { State::Validating } else { State::Running };
        self.write_with_events(&events, |sql| {
            sql.execute(
                "INSERT INTO job (id, name, state, desired, generation, priority, device_wanted, base_model, \
                 training_data, validation_data, spec_sha256, idempotency_key, retried_from, on_finish, fence, \
                 attempt, micro_batch_divisor, created_ms, started_ms) VALUES \
                 (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19)",
                params![
                    new.id,
                    new.name,
                    first.as_str(),
                    facts.control.want.as_str(),
                    facts.control.generation as i64,
                    new.priority,
                    new.device_wanted,
                    new.base_model,
                    new.training_data,
                    new.validation_data,
                    new.spec_sha256,
                    new.idempotency_key,
                    new.retried_from,
                    new.on_finish,
                    facts.fence as i64,
                    facts.attempt.as_ref().map_or(0, |a| a.attempt),
                    facts.attempt.as_ref().map_or(1, |a| a.micro_batch_divisor.max(1)),
                    dir::created_millis(&facts.id).unwrap_or_else(now_ms),
                    facts.result.as_ref().and_then(|r| dir::rfc3339_millis(&r.started_at)),
                ],
            )?;
            ingest::ingest(sql, &facts.id, &events)?;
            if facts.state == State::Running {
                let device = facts.attempt.as_ref().map_or(new.device_wanted.as_str(), |a| a.device.as_str());
                let lease = "INSERT INTO lease (device, job_id) VALUES (?1, ?2) ON CONFLICT DO NOTHING";
                sql.execute(lease, [device, new.id.as_str()])?;
            }
            if facts.state != first {
                sql.execute(
                    "UPDATE job SET state = ?2, result = ?3, finished_ms = ?4, reason = ?5 WHERE id = ?1",
                    params![new.id, facts.state.as_str(), result, finished, why],
                )?;
                sql.execute("DELETE FROM history WHERE job_id = ?1", [&new.id])?;
                // Its command was run when it ended, or will not be missed now.
                sql.execute("DELETE FROM notice WHERE job_id = ?1", [&new.id])?;
            }
            Ok(())
        })
    }
}

impl Facts {
    fn read(path: &Path) -> Result<Self, Error> {
        let id = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let spec = SpecFile::read(path)?;
        if spec.id != id || !dir::is_id(&id) {
            let message = format!("its spec is that of job {}", spec.id);
            return Err(Error::Corrupt { path: path.to_owned(), message });
        }
        let result: Option<JobResult> = control::read_json(&path.join("result.json"))?;
        let control = Control::read(path)?;
        let attempt = Attempt::read(path)?;
        let worker = WorkerIdentity::read(path)?;
        let fence = attempt.as_ref().map_or(0, |a| a.fence).max(worker.map_or(0, |w| w.fence));
        let validated = path.join("data/manifest.json").exists();
        let state = match &result {
            Some(result) => result.status.state(),
            None if !validated => State::Validating,
            None if !dir::is_free(path)? => State::Running,
            None if control.want == Desired::Pause => State::Paused,
            None => State::Queued,
        };
        Ok(Self { id, spec, state, control, attempt, fence, result })
    }
}

fn directories(jobs: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(jobs) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::at("read", jobs)(e)),
    };
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(Error::at("read", jobs))?;
    // What is on its way out, as after an interrupted removal, is nobody's job.
    paths.retain(|path| !path.file_name().unwrap_or_default().to_string_lossy().starts_with('.'));
    // Ids sort by time: the new store numbers the jobs in the order in which they were made.
    paths.sort();
    Ok(paths)
}

/// Renames the store with what SQLite keeps beside it. Nothing is ever deleted.
fn put_aside(home: &Path) -> Result<Option<PathBuf>, Error> {
    let path = home.join("jobs.sqlite");
    if path.symlink_metadata().is_err() {
        return Ok(None);
    }
    let old = home.join(format!("jobs.sqlite.old-{}", now_ms()));
    // The log first: beside a new store it would be taken for its own.
    for end in ["-wal", "-shm", ""] {
        let from = home.join(format!("jobs.sqlite{end}"));
        let to =
            old.with_file_name(format!("{}{end}", old.file_name().unwrap_or_default().to_string_lossy()));
        match fs::rename(&from, &to) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !end.is_empty() => {}
            Err(e) => return Err(Error::at("rename", &from)(e)),
        }
    }
    dir::sync_dir(home)?;
    Ok(Some(old))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_marks_of_another_program_are_refused() {
        let home = tempfile::tempdir().unwrap();
        let other = rusqlite::Connection::open(home.path().join("jobs.sqlite")).unwrap();
        other.execute_batch("CREATE TABLE t (a)").unwrap();
        drop(other);
        assert!(Store::open(home.path()).unwrap_err().to_string().contains("not a store of jobs"));
    }
}
