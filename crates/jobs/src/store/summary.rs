//! What a list of jobs shows: read without the jobs' results, so that thousands of jobs are no matter.

use super::{FROM_JOB, Filter, Store, job};
use crate::{Desired, Error, State};

/// A job in a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// Job id.
    pub id: String,
    /// Name of the job.
    pub name: String,
    /// Where it is.
    pub state: State,
    /// What is wanted of it.
    pub desired: Desired,
    /// Base model.
    pub base_model: String,
    /// Device it has while it runs.
    pub device: Option<String>,
    /// Why it waits, is paused or was started again; why it failed, when it did.
    pub reason: Option<String>,
    /// Milliseconds since 1970.
    pub created_ms: i64,
    /// When it was over, in milliseconds since 1970.
    pub finished_ms: Option<i64>,
    /// What it is doing, as its events say.
    pub phase: Option<String>,
    /// Optimizer steps done.
    pub step: u64,
    /// Optimizer steps planned; 0 before there is a plan.
    pub total_steps: u64,
}

impl Store {
    /// What [`Store::list`] gives, in short.
    pub fn summaries(&self, filter: Filter<'_>) -> Result<Vec<Summary>, Error> {
        let (only, limit) = filter.words();
        let query = format!(
            "SELECT job.id, name, state, desired, base_model, lease.device, reason, created_ms, finished_ms, \
             phase, step, total_steps {FROM_JOB} {only} ORDER BY number DESC LIMIT {limit}"
        );
        let read = || -> rusqlite::Result<Vec<Summary>> {
            let mut query = self.sql.prepare(&query)?;
            let rows = query.query_map([], |row| {
                Ok(Summary {
                    id: row.get(0)?,
                    name: row.get(1)?,
                    state: job::word(row, 2, State::from_word)?,
                    desired: job::word(row, 3, Desired::from_word)?,
                    base_model: row.get(4)?,
                    device: row.get(5)?,
                    reason: row.get(6)?,
                    created_ms: row.get(7)?,
                    finished_ms: row.get(8)?,
                    phase: row.get(9)?,
                    step: row.get::<_, i64>(10)? as u64,
                    total_steps: row.get::<_, i64>(11)? as u64,
                })
            })?;
            rows.collect()
        };
        read().map_err(|e| self.fault(e))
    }
}

impl Summary {
    /// Share of the work that is done, from 0 to 1.
    pub fn fraction(&self) -> f64 {
        if self.total_steps == 0 { 0.0 } else { (self.step as f64 / self.total_steps as f64).min(1.0) }
    }
}
