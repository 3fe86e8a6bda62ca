//! The store: what is known of every job, in one SQLite file of the workspace, `jobs.sqlite`.
//!
//! Any process may open it: the commands that people type, and the supervisor. What may not happen is refused by the
//! database itself: a transition that is not in the table, a change of a job that is over, a fence that goes down.
//! Losing the file loses only history; [`Store::rebuild`] reads the job directories.

mod ingest;
mod job;
mod progress;
mod read;
mod rebuild;
mod schema;
mod summary;

use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use rusqlite::{Connection, OptionalExtension as _, Transaction as Sql, TransactionBehavior, params};

pub use job::{Job, NewJob, StoredEvent, Transition};
pub use progress::Progress;
pub use rebuild::Rebuilt;
pub use summary::Summary;

use crate::dir::JobResult;
use crate::state::{Answer, request};
use crate::{Desired, Error, State, failpoint};

/// The open store.
#[derive(Debug)]
pub struct Store {
    home: PathBuf,
    path: PathBuf,
    sql: Connection,
}

/// What the worker that starts next is told, as [`crate::dir::Attempt`] holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// Fence of this start.
    pub fence: u64,
    /// Counts the starts that train.
    pub attempt: u32,
    /// Micro-batches are made this many times smaller.
    pub micro_batch_divisor: u32,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AttemptEnd {
    /// Why, when the job goes on or waits.
    pub reason: Option<String>,
    /// How the job ended, when it did.
    pub result: Option<JobResult>,
    /// New divisor of micro-batches, where it changes.
    pub micro_batch_divisor: Option<u32>,
    /// New count of attempts in a row without a newer checkpoint, where it changes.
    pub stalls: Option<u32>,
    /// Only if the user still wants this.
    pub desired: Option<Desired>,
}

/// Which jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Filter<'a> {
    /// Only these states; all when empty.
    pub states: &'a [State],
    /// At most so many, the newest; all when absent.
    pub limit: Option<usize>,
}

const FROM_JOB: &str = "FROM job LEFT JOIN lease ON lease.job_id = job.id";

impl Store {
    /// Opens the store of a workspace, making it where there is none.
    pub fn open(home: &Path) -> Result<Self, Error> {
        let path = home.join("jobs.sqlite");
        let sql = schema::open(&path)?;
        Ok(Self { home: home.to_owned(), path, sql })
    }

    /// The workspace.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// The directory of a job.
    pub fn dir(&self, id: &str) -> PathBuf {
        self.home.join("jobs").join(id)
    }

    /// A number that changes whenever another process has changed the store.
    pub fn data_version(&self) -> Result<i64, Error> {
        self.sql.pragma_query_value(None, "data_version", |row| row.get(0)).map_err(|e| self.fault(e))
    }

    /// Reads every page and index; an empty list is a sound store.
    pub fn problems(&self) -> Result<Vec<String>, Error> {
        schema::problems(&self.sql).map_err(|e| self.fault(e))
    }

    /// Writes a job down, `validating`. With an idempotency key that a job has already, that job comes back, and true.
    ///
    /// # Errors
    /// [`Error::Refused`] when the job of the key was made from another spec.
    pub fn create(&mut self, new: &NewJob) -> Result<(Job, bool), Error> {
        let existed = self.write(|sql| {
            if let Some(key) = &new.idempotency_key {
                let known: Option<String> = sql
                    .query_row("SELECT id FROM job WHERE idempotency_key = ?1", [key], |row| row.get(0))
                    .optional()?;
                if let Some(id) = known {
                    return Ok(Some(id));
                }
            }
            sql.execute(
                "INSERT INTO job (id, name, state, priority, device_wanted, base_model, training_data, \
                 validation_data, spec_sha256, idempotency_key, retried_from, on_finish, created_ms) \
                 VALUES (?1, ?2, 'validating', ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
                params![
                    new.id,
                    new.name,
                    new.priority,
                    new.device_wanted,
                    new.base_model,
                    new.training_data,
                    new.validation_data,
                    new.spec_sha256,
                    new.idempotency_key,
                    new.retried_from,
                    new.on_finish,
                    now_ms(),
                ],
            )?;
            Ok(None)
        })?;
        let job = self.job(existed.as_deref().unwrap_or(&new.id))?;
        if existed.is_some() && job.spec_sha256 != new.spec_sha256 {
            let key = new.idempotency_key.as_deref().unwrap_or_default();
            return Err(Error::Refused {
                message: format!(
                    "the key `{key}` belongs to job {}, which was made from another spec",
                    job.id
                ),
                code: "already_exists",
            });
        }
        Ok((job, existed.is_some()))
    }

    /// What a user asks of a job: see [`request`]. On [`Answer::Wished`] the caller writes `control` with the job's new
    /// generation.
    ///
    /// # Errors
    /// [`Error::NoJob`]. A refusal is an answer.
    pub fn request(&mut self, id: &str, wish: Desired) -> Result<(Answer, Job), Error> {
        let answer = self.write(|sql| {
            let Some((state, desired)) = state_of(sql, id)? else { return Ok(None) };
            let answer = request(state, desired, wish);
            match answer {
                Answer::Wished(wish) => {
                    sql.execute(
                        "UPDATE job SET desired = ?2, generation = generation + 1 WHERE id = ?1",
                        params![id, wish.as_str()],
                    )?;
                }
                Answer::Moved(state, wish) => {
                    let over = state.is_terminal().then(now_ms);
                    sql.execute(
                        "UPDATE job SET desired = ?2, generation = generation + 1, state = ?3, finished_ms = ?4, \
                         reason = NULL, stalls = 0 WHERE id = ?1",
                        params![id, wish.as_str(), state.as_str(), over],
                    )?;
                }
                Answer::Already | Answer::Refused => {}
            }
            Ok(Some(answer))
        })?;
        let job = self.job(id)?;
        answer.map(|answer| (answer, job)).ok_or_else(|| Error::NoJob { wanted: id.to_owned() })
    }

    /// Begins the reading of a job's rows: a new fence; none if it is not `validating` any more.
    pub fn begin_validation(&mut self, id: &str) -> Result<Option<u64>, Error> {
        self.write(|sql| {
            let begun =
                sql.execute("UPDATE job SET fence = fence + 1 WHERE id = ?1 AND state = 'validating'", [id])?;
            if begun == 0 {
                return Ok(None);
            }
            sql.query_row("SELECT fence FROM job WHERE id = ?1", [id], |row| row.get::<_, i64>(0))
                .map(|fence| Some(fence as u64))
        })
    }

    /// Ends the reading of a job's rows with `to` (`queued`, `failed` or `cancelled`); false if the job is not
    /// `validating` under this fence any more. A queued job that is to pause is paused at once.
    pub fn end_validation(
        &mut self,
        id: &str,
        fence: u64,
        to: State,
        end: &AttemptEnd,
    ) -> Result<bool, Error> {
        self.close(id, fence, State::Validating, to, end)
    }

    /// Starts a queued job on a device: a lease, a new fence and a new attempt in one transaction; none if the job is not
    /// `queued` any more or the device is taken.
    pub fn start(&mut self, id: &str, device: &str) -> Result<Option<Started>, Error> {
        let started = self.write(|sql| {
            if !matches!(state_of(sql, id)?, Some((State::Queued, Desired::Run))) {
                return Ok(None);
            }
            let leased = sql.execute(
                "INSERT INTO lease (device, job_id) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
                [device, id],
            )?;
            if leased == 0 {
                return Ok(None);
            }
            sql.execute(
                "UPDATE job SET state = 'running', fence = fence + 1, attempt = attempt + 1, reason = NULL, \
                 started_ms = coalesce(started_ms, ?2) WHERE id = ?1",
                params![id, now_ms()],
            )?;
            sql.query_row("SELECT fence, attempt, micro_batch_divisor FROM job WHERE id = ?1", [id], |row| {
                Ok(Some(Started {
                    fence: row.get::<_, i64>(0)? as u64,
                    attempt: row.get(1)?,
                    micro_batch_divisor: row.get(2)?,
                }))
            })
        })?;
        failpoint::hit("store:started");
        Ok(started)
    }

    /// Ends a running attempt with `to`; false if the job is not running under this fence any more, or something else
    /// is wanted of it than the end says: whatever was written first has won. What its events still tell is taken in first, and the device is free.
    pub fn end_attempt(&mut self, id: &str, fence: u64, to: State, end: &AttemptEnd) -> Result<bool, Error> {
        self.close(id, fence, State::Running, to, end)
    }

    fn close(
        &mut self,
        id: &str,
        fence: u64,
        from: State,
        to: State,
        end: &AttemptEnd,
    ) -> Result<bool, Error> {
        failpoint::hit("store:before_end");
        let events = self.dir(id).join("events.jsonl");
        let result = end
            .result
            .as_ref()
            .map(serde_json::to_string)
            .transpose()
            .map_err(|e| Error::Json { path: self.path.clone(), message: e.to_string() })?;
        let why = || end.result.as_ref()?.error.as_ref().map(|error| error.message.clone());
        let reason = end.reason.clone().or_else(why);
        let closed = self.write_with_events(&events, |sql| {
            let known = "SELECT fence FROM job WHERE id = ?1";
            let known = sql.query_row(known, [id], |row| row.get::<_, i64>(0)).optional()?;
            let current = match (state_of(sql, id)?, known) {
                (Some((state, desired)), Some(known)) => {
                    state == from && known as u64 == fence && end.desired.is_none_or(|wish| wish == desired)
                }
                _ => false,
            };
            if !current {
                return Ok(false);
            }
            ingest::ingest(sql, id, &events)?;
            sql.execute(
                "UPDATE job SET state = ?2, reason = ?3, result = coalesce(?4, result), \
                 micro_batch_divisor = coalesce(?5, micro_batch_divisor), stalls = coalesce(?6, stalls), \
                 finished_ms = ?7 WHERE id = ?1",
                params![
                    id,
                    to.as_str(),
                    reason,
                    result,
                    end.micro_batch_divisor,
                    end.stalls,
                    to.is_terminal().then(now_ms),
                ],
            )?;
            if to == State::Queued {
                sql.execute(
                    "UPDATE job SET state = 'paused' WHERE id = ?1 AND desired = 'pause' AND state = 'queued'",
                    [id],
                )?;
            }
            Ok(true)
        })?;
        failpoint::hit("store:after_end");
        Ok(closed)
    }

    /// Takes in what the events of a job tell since the last time; returns how many there were.
    pub fn ingest(&mut self, id: &str) -> Result<usize, Error> {
        let events = self.dir(id).join("events.jsonl");
        let offset: Option<(i64, String)> = self
            .sql
            .prepare_cached("SELECT event_offset, state FROM job WHERE id = ?1")
            .and_then(|mut q| q.query_row([id], |row| Ok((row.get(0)?, row.get(1)?))).optional())
            .map_err(|e| self.fault(e))?;
        let Some((offset, state)) = offset else { return Ok(0) };
        let over = State::from_word(&state).is_none_or(State::is_terminal);
        if over || !ingest::has_more(&events, offset as u64) {
            return Ok(0);
        }
        self.write_with_events(&events, |sql| match state_of(sql, id)? {
            Some((state, _)) if !state.is_terminal() => ingest::ingest(sql, id, &events),
            _ => Ok(0),
        })
    }

    /// [`Store::ingest`] for every job that is not over.
    pub fn ingest_live(&mut self) -> Result<(), Error> {
        for job in self.live()? {
            self.ingest(&job.id)?;
        }
        Ok(())
    }

    /// Says why a job that is not over waits.
    pub fn set_reason(&mut self, id: &str, reason: Option<&str>) -> Result<(), Error> {
        self.set_reasons([(id, reason)])
    }

    /// [`Store::set_reason`] for many jobs, in one transaction.
    pub fn set_reasons<'a>(
        &mut self,
        reasons: impl IntoIterator<Item = (&'a str, Option<&'a str>)>,
    ) -> Result<(), Error> {
        self.write(|sql| {
            let mut set = sql.prepare_cached(
                "UPDATE job SET reason = ?2 WHERE id = ?1 AND reason IS NOT ?2 \
                 AND state NOT IN ('succeeded', 'failed', 'cancelled')",
            )?;
            reasons.into_iter().try_for_each(|(id, reason)| set.execute(params![id, reason]).map(drop))
        })
    }

    /// Cancels a job that waits or is paused and of which that is wanted: a cancel that came while its worker ended.
    /// False if it is not so.
    pub fn cancel_waiting(&mut self, id: &str, result: &JobResult) -> Result<bool, Error> {
        let result = serde_json::to_string(result)
            .map_err(|e| Error::Json { path: self.path.clone(), message: e.to_string() })?;
        let cancelled = self.write(|sql| {
            sql.execute(
                "UPDATE job SET state = 'cancelled', reason = NULL, result = ?2, finished_ms = ?3 \
                 WHERE id = ?1 AND desired = 'cancel' AND state IN ('queued', 'paused')",
                params![id, result, now_ms()],
            )
        })?;
        Ok(cancelled == 1)
    }

    /// Takes a notice, so that no other process runs its command too; false if one has.
    pub fn take_notice(&mut self, id: &str) -> Result<bool, Error> {
        let taken = self.write(|sql| {
            sql.execute("UPDATE notice SET state = 'taken' WHERE job_id = ?1 AND state = 'pending'", [id])
        })?;
        Ok(taken == 1)
    }

    /// Forgets a job that is over or paused, its events and its history; false if it is neither.
    pub fn remove(&mut self, id: &str) -> Result<bool, Error> {
        let removed = self.write(|sql| {
            sql.execute(
                "DELETE FROM job WHERE id = ?1 AND state IN ('succeeded', 'failed', 'cancelled', 'paused')",
                [id],
            )
        })?;
        Ok(removed == 1)
    }

    /// One durable transaction.
    fn write<T>(&mut self, work: impl FnOnce(&Sql<'_>) -> rusqlite::Result<T>) -> Result<T, Error> {
        let run = |sql: &mut Connection| -> rusqlite::Result<T> {
            let transaction = sql.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let value = work(&transaction)?;
            transaction.commit()?;
            Ok(value)
        };
        run(&mut self.sql).map_err(|e| schema::fault(&self.path, e))
    }

    /// One durable transaction that reads an event log too.
    fn write_with_events<T>(
        &mut self,
        events: &Path,
        work: impl FnOnce(&Sql<'_>) -> Result<T, ingest::Trouble>,
    ) -> Result<T, Error> {
        let run = |sql: &mut Connection| -> Result<T, ingest::Trouble> {
            let transaction = sql.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let value = work(&transaction)?;
            transaction.commit()?;
            Ok(value)
        };
        run(&mut self.sql).map_err(|trouble| match trouble {
            ingest::Trouble::Sql(e) => schema::fault(&self.path, e),
            ingest::Trouble::Io(e) => Error::at("read", events)(e),
        })
    }

    fn fault(&self, error: rusqlite::Error) -> Error {
        schema::fault(&self.path, error)
    }
}

fn state_of(sql: &Connection, id: &str) -> rusqlite::Result<Option<(State, Desired)>> {
    sql.prepare_cached("SELECT state, desired FROM job WHERE id = ?1")?
        .query_row([id], |row| {
            Ok((job::word(row, 0, State::from_word)?, job::word(row, 1, Desired::from_word)?))
        })
        .optional()
}

/// Milliseconds since 1970.
fn now_ms() -> i64 {
    crate::dir::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

#[cfg(test)]
mod tests;
