//! What can be asked of the store.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension as _, params};

use super::job::{self, Job, StoredEvent, Transition};
use super::{FROM_JOB, Filter, Store};
use crate::{Error, State};

impl Filter<'_> {
    /// The clause of a query, and its limit.
    pub(super) fn words(&self) -> (String, i64) {
        let states = self.states.iter().map(|s| format!("'{}'", s.as_str())).collect::<Vec<_>>().join(", ");
        let only = if states.is_empty() { String::new() } else { format!("WHERE state IN ({states})") };
        (only, self.limit.map_or(-1, |limit| i64::try_from(limit).unwrap_or(i64::MAX)))
    }
}

impl Store {
    /// A job by its id.
    ///
    /// # Errors
    /// [`Error::NoJob`].
    pub fn job(&self, id: &str) -> Result<Job, Error> {
        let query = format!("SELECT {} {FROM_JOB} WHERE job.id = ?1", job::COLUMNS);
        let found = self.sql.prepare_cached(&query).and_then(|mut q| q.query_row([id], job::read).optional());
        found.map_err(|e| self.fault(e))?.ok_or_else(|| Error::NoJob { wanted: id.to_owned() })
    }

    /// A job by its id, the beginning of its id, or its name: where several have the name, the newest that is not
    /// over, or else the only one.
    ///
    /// # Errors
    /// [`Error::NoJob`], [`Error::Ambiguous`].
    pub fn find(&self, wanted: &str) -> Result<Job, Error> {
        let ids = |filter: &str, value: &str| -> rusqlite::Result<Vec<String>> {
            let query = format!("SELECT id FROM job WHERE {filter} ORDER BY number DESC LIMIT 6");
            let mut query = self.sql.prepare(&query)?;
            query.query_map([value], |row| row.get(0))?.collect()
        };
        let look = || -> rusqlite::Result<Vec<String>> {
            let exact = ids("id = ?1", wanted)?;
            if !exact.is_empty() {
                return Ok(exact);
            }
            let live = "name = ?1 AND state NOT IN ('succeeded', 'failed', 'cancelled')";
            for filter in [live, "name = ?1"] {
                let named = ids(filter, wanted)?;
                if !named.is_empty() {
                    return Ok(named);
                }
            }
            // Without the common prefix people type what they see at the end of it.
            let short = wanted.strip_prefix("ftjob-").unwrap_or(wanted);
            if short.is_empty() {
                return Ok(Vec::new());
            }
            ids("substr(id, 7, length(?1)) = ?1", short)
        };
        let mut found = look().map_err(|e| self.fault(e))?;
        match found.len() {
            0 => Err(Error::NoJob { wanted: wanted.to_owned() }),
            1 => self.job(&found.remove(0)),
            _ => Err(Error::Ambiguous { wanted: wanted.to_owned(), ids: found }),
        }
    }

    /// Jobs, the newest first.
    pub fn list(&self, filter: Filter<'_>) -> Result<Vec<Job>, Error> {
        let (only, limit) = filter.words();
        let query = format!("SELECT {} {FROM_JOB} {only} ORDER BY number DESC LIMIT {limit}", job::COLUMNS);
        let read = || -> rusqlite::Result<Vec<Job>> {
            self.sql.prepare_cached(&query)?.query_map([], job::read)?.collect()
        };
        read().map_err(|e| self.fault(e))
    }

    /// Jobs that are not over, in the order in which they run: by priority, then by age.
    pub fn live(&self) -> Result<Vec<Job>, Error> {
        let query = format!(
            "SELECT {} {FROM_JOB} WHERE state NOT IN ('succeeded', 'failed', 'cancelled') \
             ORDER BY priority DESC, number",
            job::COLUMNS
        );
        let read = || -> rusqlite::Result<Vec<Job>> {
            self.sql.prepare_cached(&query)?.query_map([], job::read)?.collect()
        };
        read().map_err(|e| self.fault(e))
    }

    /// Events of a job after `seq`, oldest first, at most `limit`.
    pub fn events(&self, id: &str, after: u64, limit: usize) -> Result<Vec<StoredEvent>, Error> {
        let read = || -> rusqlite::Result<Vec<StoredEvent>> {
            let mut query = self.sql.prepare_cached(
                "SELECT seq, time, type, data FROM event WHERE job_id = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3",
            )?;
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            query.query_map(params![id, after as i64, limit], job::read_event)?.collect()
        };
        read().map_err(|e| self.fault(e))
    }

    /// `seq` of the newest event of a job; 0 before the first.
    pub fn last_event(&self, id: &str) -> Result<u64, Error> {
        let query = "SELECT event_seq FROM job WHERE id = ?1";
        let read = self.sql.query_row(query, [id], |row| row.get::<_, i64>(0)).optional();
        Ok(read.map_err(|e| self.fault(e))?.unwrap_or_default() as u64)
    }

    /// The newest events of one type of a job, at most `limit`, oldest first.
    pub fn events_of(&self, id: &str, kind: &str, limit: usize) -> Result<Vec<StoredEvent>, Error> {
        let read = || -> rusqlite::Result<Vec<StoredEvent>> {
            let mut query = self.sql.prepare_cached(
                "SELECT seq, time, type, data FROM event WHERE job_id = ?1 AND type = ?2 \
                 ORDER BY seq DESC LIMIT ?3",
            )?;
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            query.query_map(params![id, kind, limit], job::read_event)?.collect()
        };
        let mut events = read().map_err(|e| self.fault(e))?;
        events.reverse();
        Ok(events)
    }

    /// Every change of a job's state, oldest first.
    pub fn history(&self, id: &str) -> Result<Vec<Transition>, Error> {
        let read = || -> rusqlite::Result<Vec<Transition>> {
            let mut query = self.sql.prepare_cached(
                "SELECT at_ms, old, new, fence, reason FROM history WHERE job_id = ?1 ORDER BY number",
            )?;
            query
                .query_map([id], |row| {
                    Ok(Transition {
                        at_ms: row.get(0)?,
                        old: job::word(row, 1, State::from_word)?,
                        new: job::word(row, 2, State::from_word)?,
                        fence: row.get::<_, i64>(3)? as u64,
                        reason: row.get(4)?,
                    })
                })?
                .collect()
        };
        read().map_err(|e| self.fault(e))
    }

    /// Which job has which device.
    pub fn leases(&self) -> Result<BTreeMap<String, String>, Error> {
        let read = || -> rusqlite::Result<BTreeMap<String, String>> {
            let mut query = self.sql.prepare_cached("SELECT device, job_id FROM lease")?;
            query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
        };
        read().map_err(|e| self.fault(e))
    }

    /// Jobs that are over and whose command is still to be run, with the command.
    pub fn notices(&self) -> Result<Vec<(Job, String)>, Error> {
        let read = || -> rusqlite::Result<Vec<String>> {
            let mut query = self.sql.prepare_cached("SELECT job_id FROM notice WHERE state = 'pending'")?;
            query.query_map([], |row| row.get(0))?.collect()
        };
        let ids = read().map_err(|e| self.fault(e))?;
        let jobs = ids.iter().map(|id| self.job(id)).collect::<Result<Vec<_>, _>>()?;
        Ok(jobs.into_iter().filter_map(|job| job.on_finish.clone().map(|command| (job, command))).collect())
    }
}
