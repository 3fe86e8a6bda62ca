//! What a list of jobs shows: read without the jobs' results, so that thousands of jobs are no matter.

use serde::Deserialize;

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

/// What is needed of [`super::Progress`].
#[derive(Default, Deserialize)]
#[serde(default)]
struct Short {
    phase: Option<String>,
    step: u64,
    total_steps: u64,
}

impl Store {
    /// What [`Store::list`] gives, in short.
    pub fn summaries(&self, filter: Filter<'_>) -> Result<Vec<Summary>, Error> {
        let (only, limit) = filter.words();
        let query = format!(
            "SELECT job.id, name, state, desired, base_model, lease.device, \
             CASE state WHEN 'failed' THEN coalesce(json_extract(result, '$.error.message'), reason) \
             ELSE reason END, created_ms, finished_ms, progress {FROM_JOB} {only} \
             ORDER BY number DESC LIMIT {limit}"
        );
        let read = || -> rusqlite::Result<Vec<Summary>> {
            let mut query = self.sql.prepare(&query)?;
            let rows = query.query_map([], |row| {
                let progress = row.get_ref(9)?.as_str().unwrap_or_default();
                // A list is still of use without the progress of a job that another version wrote.
                let short: Short = serde_json::from_str(progress).unwrap_or_default();
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
                    phase: short.phase,
                    step: short.step,
                    total_steps: short.total_steps,
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
